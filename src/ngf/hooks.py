"""What goes into a model's modules, seen from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@contextlib.contextmanager
def at_inputs(
    modules: Mapping[str, Module], act: Callable[[str, Module, Tensor], None]
) -> Iterator[None]:
    """Calls act(name, module, inputs) before each of the modules in a forward pass."""

    def listen(name: str, module: Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            act(name, module, args[0])  # and nothing is returned, which would replace the inputs

        return hook

    hooks = [
        module.register_forward_pre_hook(listen(name, module)) for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
