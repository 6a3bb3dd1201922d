"""What MLflow's registry does with models, versions, tags and aliases, in memory: for tests that begin anew often."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class RegistryInMemory:
    """A client of one registered model."""

    def __init__(self, name: str, versions: int) -> None:
        self.name = name
        self.tags: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.versions = {
            str(number): {"tags": {"size/checkpoint_gb": "0.5"}, "description": ""} for number in range(1, versions + 1)
        }

    def get_registered_model(self, name: str) -> Any:
        assert name == self.name
        return SimpleNamespace(name=name, tags=dict(self.tags), aliases=dict(self.aliases))

    def search_model_versions(self, filter_string: str) -> list[Any]:
        assert filter_string == f"name = '{self.name}'"
        return [self.get_model_version(self.name, version) for version in self.versions]

    def get_model_version(self, name: str, version: str) -> Any:
        found: dict[str, Any] = self.versions[version]
        told = {"tags": dict(found["tags"]), "description": found["description"]}
        return SimpleNamespace(name=name, version=version, run_id=None, **told)

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.tags[key] = value

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        self.tags.pop(key, None)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        assert version in self.versions
        self.aliases[alias] = version

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self.aliases.pop(alias, None)

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self.versions[version]["tags"][key] = value

    def update_model_version(self, name: str, version: str, description: str) -> None:
        self.versions[version]["description"] = description
