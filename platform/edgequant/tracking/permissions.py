"""What the account may do on a tracking server that asks for passwords, asked before hours of work end in `denied`."""

from __future__ import annotations

import re
from typing import Any

import mlflow

from edgequant.errors import UserError
from edgequant.tracking.addresses import shown_store
from edgequant.tracking.away.patience import at_once
from edgequant.tracking.store import check_store
from edgequant.tracking.store_errors import store_errors_told

REGISTERED = "edgequant-"  # how names of registered models begin
ENDPOINT = "/api/3.0/mlflow/users/permissions/get"
ENOUGH = ("EDIT", "MANAGE")


def registered_model(uri: str) -> str:
    """`tiny` of models:/edgequant-tiny/2 and models:/edgequant-tiny@champion; empty of what is no such address."""
    found = re.fullmatch(r"models:/+([^/@]+)[/@].+", uri)
    return found[1].removeprefix(REGISTERED) if found else ""


def check_may_register(model: str) -> None:
    """Refuse to begin what would end in a version of a registered model that the account may not change.

    Args:
        model: short name; nothing is asked where no model of that name is registered, which anyone may do.

    Raises:
        UserError: names the account and the permission that it needs.
    """
    check_store()
    name = f"{REGISTERED}{model}"
    with store_errors_told(), at_once():
        found = mlflow.MlflowClient().search_registered_models(f"name = '{name}'") if "'" not in name else []
    if found:
        check_may_change(name, "or leave the registry alone with --register false")


def check_may_change(name: str, otherwise: str = "or let somebody do it who has that") -> None:
    """Refuse to begin where the account may not change a registered model.

    Servers without accounts, and databases, let everyone.

    Args:
        name: of the registered model.
        otherwise: what else to do, as the end of a sentence.

    Raises:
        UserError: names the account and the permission that it needs.
    """
    user, permission = _permission("registered_model", name)
    if permission is not None and permission not in ENOUGH:
        raise UserError(
            f"user {user!r} may not change the registered model {name!r} in {shown_store()}: its permission is "
            f"{permission}; ask the server's administrator for EDIT, {otherwise}"
        )


def _permission(kind: str, name: str) -> tuple[str, str | None]:
    """The account and what it may do; None where the server does not say."""
    uri = str(mlflow.get_tracking_uri())
    if not uri.startswith(("http://", "https://")):
        return "", None
    from mlflow.tracking._tracking_service.utils import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    server = get_default_host_creds(uri)
    if not server.username:
        return "", None
    asked = {"username": server.username, "resource_type": kind, "resource_id": name}
    with store_errors_told():
        answer: Any = http_request(server, ENDPOINT, "GET", params=asked, max_retries=1)
    return server.username, _stated(answer)


def _stated(answer: Any) -> str | None:
    try:
        return answer.json().get("permission") if answer.ok else None
    except (ValueError, AttributeError):  # of a server without accounts
        return None
