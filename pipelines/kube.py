"""Kubernetes' API, by a kubeconfig or from within a pod."""

from __future__ import annotations

from typing import Any


def connect(context: str | None) -> Any:
    """kubernetes' ApiClient; each question is asked once.

    Args:
        context: of the kubeconfig; by default its current one, or the pod's own service account
            where there is no kubeconfig.

    Raises:
        ConfigException: neither of them, or no such context.
    """
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    settings = client.Configuration()
    settings.retries = False  # or each question takes its time limit four times
    try:
        return config.new_client_from_config(
            context=context, persist_config=False, client_configuration=settings
        )
    except ConfigException as error:
        if context is not None:
            raise
        try:
            config.load_incluster_config(settings)
        except ConfigException:
            raise error from None
    return client.ApiClient(settings)
