"""A run's files become a version of a registered model: what is asked of MLflow for it, now or when it is back."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import mlflow

EVIDENCE_TAG = "edgequant.evidence"


@dataclass(frozen=True)
class Registration:
    """A version to be made.

    Attributes:
        name: of the registered model.
        run: id of the run that has the files.
        place: of the files in the run.
        tags: of the version.
        about: of the registered model: `description`, and any tag.
        description: of the version.
        evidence: text of the version's evidence.json, of which the run keeps a copy; empty: it has none.
        digest: its SHA-256, which the run keeps as a parameter.
    """

    name: str
    run: str
    place: str
    tags: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    description: str = ""
    evidence: str = ""
    digest: str = ""

    def file(self, *, again: bool = False) -> str:
        """Make the version, unless an earlier try did (`again`); its number."""
        client = mlflow.MlflowClient()
        self._describe(client)
        source = f"runs:/{self.run}/{self.place}"
        made = client.search_model_versions(f"run_id = '{self.run}'") if again else ()
        version = next((str(each.version) for each in made if (each.name, each.source) == (self.name, source)), None)
        if version is None:
            tags = self.tags | ({EVIDENCE_TAG: self.digest} if self.digest else {})
            description = self.description or None
            created = client.create_model_version(self.name, source, self.run, tags=tags, description=description)
            version = str(created.version)
        if self.evidence:
            client.log_text(self.run, self.evidence, copy_of(self.name, version))
            client.log_param(self.run, parameter_of(self.name, version), self.digest)
        return version

    def _describe(self, client: mlflow.MlflowClient) -> None:
        """What a person has written of the registered model stays."""
        about = {name: text for name, text in self.about.items() if name != "description"}
        description = self.about.get("description", "")
        found = client.search_registered_models(f"name = '{self.name}'")
        if not found:
            client.create_registered_model(self.name, tags=about, description=description or None)
            return
        if description and not found[0].description:
            client.update_registered_model(self.name, description)
        for key, value in about.items():
            if key not in found[0].tags:
                client.set_registered_model_tag(self.name, key, value)


def parameter_of(name: str, version: str) -> str:
    """The run's parameter that holds the SHA-256 of a version's evidence."""
    return f"evidence.{re.sub('[^A-Za-z0-9_.-]', '_', name)}.{version}"


def copy_of(name: str, version: str) -> str:
    """The run's copy of a version's evidence."""
    return f"evidence/{re.sub('[^A-Za-z0-9_.-]', '_', name)}-v{version}.json"
