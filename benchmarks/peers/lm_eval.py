"""lm-evaluation-harness on local rows, without network."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

from edgequant.evaluation.tasks.squad import squad_prompt


class Harness:
    """lm-evaluation-harness over local rows, with the prompts of its own task files."""

    def __init__(self, loaded: Any, folder: Path, window: int) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.loaded, self.folder, self.window = loaded, folder, window

    def boolq(self, rows: list[dict]) -> Any:
        """`tasks/super_glue/boolq/default.yaml`."""
        labeled = [{**row, "label": int(row["answer"])} for row in rows]
        config = {
            "output_type": "multiple_choice",
            "doc_to_text": "{{passage}}\nQuestion: {{question}}?\nAnswer:",
            "doc_to_target": "label",
            "doc_to_choice": ["no", "yes"],
            "metric_list": [{"metric": "acc"}],
        }
        return self._task("boolq", labeled, config)

    def wikitext(self, pages: list[str]) -> Any:
        """`tasks/wikitext/wikitext.yaml`."""
        process = importlib.import_module("lm_eval.tasks.wikitext.preprocess_wikitext")
        config = {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": process.wikitext_detokenizer,
            "process_results": process.process_results,
            "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        }
        return self._task("wikitext", [{"page": page} for page in pages], config)

    def squad(self, rows: list[dict]) -> Any:
        """The prompt of `tasks/squadv2`, greedy to the first line end or 32 tokens."""
        asked = [{"prompt": squad_prompt(row), "first": row["answers"]["text"][0]} for row in rows]
        config = {
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{first}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 32, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        }
        return self._task("squad", asked, config)

    def run(self, task: Any, count: int, batch: int) -> list[dict]:
        """One sample per document, in the documents' order."""
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM

        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=self.window)
        result = evaluator.evaluate(harness, task, limit=count, bootstrap_iters=0, log_samples=True)
        return sorted(next(iter(result["samples"].values())), key=lambda sample: sample["doc_id"])

    def _task(self, name: str, rows: list[dict], config: dict[str, Any]) -> Any:
        """Built once, outside what is timed: reading the task index takes lm-eval seconds."""
        from lm_eval.tasks import TaskManager

        file = self.folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        local = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(file)}, "cache_dir": str(self.folder / "cache")},
            "validation_split": "validation",
            "num_fewshot": 0,
        }
        return TaskManager().load([local | config])
