"""What `mlflow models serve` runs: the checkpoint behind a champion, generating text.

Models-from-code: this file is copied beside the checkpoint when a version is promoted, and is read from there.

    mlflow.pyfunc.load_model("models:/edgequant-tiny@champion").predict(["The water is"], params={"max_new_tokens": 20})
    curl -d '{"inputs": ["The water is"]}' -H 'Content-Type: application/json' http://127.0.0.1:5000/invocations
"""

from __future__ import annotations

from typing import Any

import mlflow


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Prompts in, continuations out (without the prompt), in the same order."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint beside this file, its files verified."""
        from edgequant import models

        loaded = models.load(context.artifacts["checkpoint"])
        self.model: Any = loaded.model
        self.tokenizer = loaded.tokenizer

    # without type hints: MLflow would take the signature from them, and lose the parameters
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Continue each prompt.

        Args:
            model_input: texts: a list, or a data frame whose first column holds them.
            params: `max_new_tokens`, and `temperature` (0 takes the likeliest token each time).
        """
        import torch

        prompts = _texts(model_input)
        options = {"max_new_tokens": 64, "temperature": 0.0} | (params or {})
        sampled = float(options["temperature"]) > 0
        encoded = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(self.model.device)
        encoded.pop("token_type_ids", None)
        with torch.inference_mode():
            generated = self.model.generate(
                **encoded,
                max_new_tokens=int(options["max_new_tokens"]),
                do_sample=sampled,
                temperature=float(options["temperature"]) if sampled else None,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return self.tokenizer.batch_decode(generated[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def _texts(model_input: Any) -> list[str]:
    column = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else list(model_input)
    return [str(text) for text in column]


mlflow.models.set_model(ServedModel())
