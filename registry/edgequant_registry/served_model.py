"""What `mlflow models serve` runs: the checkpoint behind a champion, answering as OpenAI's chats and completions do.

Models-from-code: this file is copied beside the checkpoint when a version is promoted, and is read from there.

    model = mlflow.pyfunc.load_model("models:/edgequant-tiny@champion")
    model.predict({"messages": [{"role": "user", "content": "How is flood water made safe to drink?"}]})
    curl -d '{"prompt": "The water is", "max_tokens": 20}' -H 'Content-Type: application/json' \\
        http://127.0.0.1:5000/invocations
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import mlflow


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """A request in, OpenAI's response object out; a list of requests or prompts in, a list out, in the same order."""

    _skip_type_hint_validation = True  # as MLflow's own chat models; else every start asks for type hints

    def load_context(self, context: Any) -> None:
        """Load the checkpoint beside this file, its files verified."""
        from edgequant_registry.serving.http.app import ServingApp
        from edgequant_registry.serving.http.hook import put_around_mlflows_app
        from edgequant_registry.serving.limits import limits_of
        from edgequant_registry.serving.load_engine import load_engine
        from edgequant_registry.serving.predict import predict

        config = context.model_config or {}
        name, limits = config.get("model", "edgequant"), limits_of(config)
        engine = load_engine(Path(context.artifacts["checkpoint"]))
        self.answer = partial(predict, engine, name, limits)
        put_around_mlflows_app(partial(ServingApp, model=name, engine=engine, limits=limits))

    # without type hints: MLflow would take a signature from them, and refuse what OpenAI's clients send
    def predict(self, context, model_input):  # type: ignore[no-untyped-def]
        """Answer.

        Args:
            model_input: a request as OpenAI's clients write it, with `messages` or `prompt`; or a list, or a data
                frame, of requests or of prompts. A prompt alone is answered by a text alone.
        """
        return self.answer(model_input)


mlflow.models.set_model(ServedModel())
