"""What `mlflow models serve` runs: the checkpoint behind a champion, answering as OpenAI's chats and completions do.

Models-from-code: this file is copied beside the checkpoint when a version is promoted, and is read from there.

    model = mlflow.pyfunc.load_model("models:/edgequant-tiny@champion")
    model.predict({"messages": [{"role": "user", "content": "How is flood water made safe to drink?"}]})
    curl -d '{"prompt": "The water is", "max_tokens": 20}' -H 'Content-Type: application/json' \\
        http://127.0.0.1:5000/invocations
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """A request in, OpenAI's response object out; a list of requests or of prompts in, a list out, in the same order."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint beside this file, its files verified."""
        from edgequant_registry.serving.load_engine import load_engine
        from edgequant_registry.serving.openai_paths import offer_openai_paths

        self.name = (context.model_config or {}).get("model", "edgequant")
        self.engine = load_engine(Path(context.artifacts["checkpoint"]))
        offer_openai_paths(self.name)

    # without type hints: MLflow would take a signature from them, and refuse what OpenAI's clients send
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answer.

        Args:
            model_input: a request as OpenAI's clients write it, with `messages` or `prompt`; or a list, or a data frame,
                of requests or of prompts. A prompt alone is answered by a text alone.
        """
        from edgequant_registry.serving.predict import predict

        return predict(self.engine, self.name, model_input)


mlflow.models.set_model(ServedModel())
