"""As whom Kubeflow Pipelines is asked, and one line for what it answers instead.

KFP_TOKEN is a bearer token, KFP_COOKIES what a browser has after its login (`name=value; ...`),
KFP_CA a file with the certificates that vouch for the server. In a pod the token that Kubernetes
projects for Kubeflow is taken where neither of the first two is given.
"""

from __future__ import annotations

import json
import os
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ngf.errors import InputError
from ngf.lineage import without_passwords
from pipelines.web import get

HEALTH = "/apis/v2beta1/healthz"
DENIED = (401, 403)
REDIRECTS = (301, 302, 303, 307, 308)


class KubeflowError(Exception):
    """Kubeflow refuses, or is not there. The message is one line; remedy: what to do, or ""."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Login:
    """authority: the file of KFP_CA. pod_token: the file with a pod's own token."""

    token: str | None = field(default=None, repr=False)
    cookies: str | None = field(default=None, repr=False)
    authority: str | None = None
    pod_token: str | None = None

    @classmethod
    def of_environment(cls) -> Login:
        """From KFP_TOKEN, KFP_COOKIES, KFP_CA, and the pod where there is one.

        Raises:
            InputError: KFP_CA is not a file.
        """
        from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH

        token, cookies = (os.environ.get(name, "").strip() for name in ("KFP_TOKEN", "KFP_COOKIES"))
        authority = os.environ.get("KFP_CA") or None
        if authority and not Path(authority).is_file():
            raise InputError(f"KFP_CA: there is no file {authority}")
        projected = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH
        own = projected if not (token or cookies) and Path(projected).is_file() else None
        return cls(token or None, cookies or None, authority, own)

    def headers(self) -> dict[str, str]:
        """Of a request. A pod's token is read anew each time: the kubelet renews it."""
        token = Path(self.pod_token).read_text().strip() if self.pod_token else self.token
        found = {"Authorization": f"Bearer {token}"} if token else {}
        return found | ({"Cookie": self.cookies} if self.cookies else {})

    def client(self, address: str, namespace: str) -> Any:
        """kfp's own client, which then asks as this."""
        from kfp import Client
        from kfp.client import ServiceAccountTokenVolumeCredentials

        own = ServiceAccountTokenVolumeCredentials(self.pod_token) if self.pod_token else None
        return Client(
            host=address,
            namespace=namespace,
            existing_token=self.token,
            cookies=self.cookies,
            ssl_ca_cert=self.authority,
            credentials=own,
        )

    def refused(self, address: str) -> KubeflowError:
        """That the server at this address asks for a login."""
        given = {"KFP_TOKEN": self.token, "KFP_COOKIES": self.cookies, self.pod_token: "the pod's"}
        tried = " and ".join(name for name, value in given.items() if name and value)
        asks = f"{without_passwords(address)} asks for a login: "
        return KubeflowError(
            f"{asks}{tried} is not taken, or has expired"
            if tried
            else f"{asks}set KFP_TOKEN or KFP_COOKIES"
        )


def health(address: str, login: Login, timeout: float) -> dict[str, Any]:
    """What Kubeflow Pipelines says of itself; `multi_user` is in it.

    Raises:
        KubeflowError: no answer, a refusal, or a page where the answer should be.
    """
    shown = without_passwords(address)
    try:
        said = get(f"{address.rstrip('/')}{HEALTH}", timeout, login.headers(), login.authority)
    except urllib.error.HTTPError as error:
        raise _instead(error, address, login) from error
    except (OSError, ValueError) as error:
        remedy = "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"
        text = f"{shown} does not answer: {short(error)}"
        raise KubeflowError(text, remedy) from error
    try:
        found = json.loads(said)
    except ValueError as error:
        raise login.refused(address) from error
    if not isinstance(found, dict):
        raise KubeflowError(f"{shown} is not Kubeflow Pipelines: its health is {said[:40]!r}")
    return found


def _instead(error: urllib.error.HTTPError, address: str, login: Login) -> KubeflowError:
    """For an answer that is none: a refusal, the way to a login or to another address."""
    to = error.headers.get("Location", "") if error.code in REDIRECTS else ""
    if urlsplit(to).path.endswith(HEALTH):
        place = to.partition(HEALTH)[0]
        return KubeflowError(f"{without_passwords(address)} has moved: ask {place}")
    if to or error.code in DENIED:
        return login.refused(address)
    return KubeflowError(f"{without_passwords(address)} answered {error.code}")


def short(error: BaseException) -> str:
    """The end of what an error says, on one line."""
    return str(getattr(error, "reason", None) or error).split(": ", 1)[-1].splitlines()[0]
