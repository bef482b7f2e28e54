"""A network of one's own as a config names it: a class or a function of one's own, without settings written for it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustbench_sparse.models.base import ModelSpec

# What a factory may call what the data say -> what it is.
GIVEN = {
    "channels": "channels",
    "in_channels": "channels",
    "in_chans": "channels",
    "size": "size",
    "img_size": "size",
    "image_size": "size",
    "classes": "classes",
    "num_classes": "classes",
}
Factory = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class FactorySpec(ModelSpec):
    """A network that a factory makes; every factory has a class of its own, derived from this one, see ``spec_of``.

    Attributes:
        factory: makes the network.
        given: its parameters that the data fill in -> which of ``channels``, ``size``, ``classes`` each one is.
        lists: its parameters that are lists; in a config's settings they are tuples.
    """

    factory: ClassVar[Factory]
    given: ClassVar[Mapping[str, str]]
    lists: ClassVar[frozenset[str]]

    def __reduce__(self) -> tuple[Callable[..., ModelSpec], tuple[Factory, str, dict[str, Any]]]:
        """For other processes: the class is made of the factory again, as no module has it."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return _again, (type(self).factory, self.key, settings)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Call the factory.

        Raises:
            ValueError: it fails, or makes something else than a network.
        """
        images = {"channels": channels, "size": size, "classes": classes}
        own = {f.name for f in dataclasses.fields(self)} - {f.name for f in dataclasses.fields(ModelSpec)}
        settings = {k: list(getattr(self, k)) if k in self.lists else getattr(self, k) for k in sorted(own)}
        try:
            made = type(self).factory(**settings, **{name: images[what] for name, what in self.given.items()})
        except Exception as e:  # the factory is anybody's
            raise ValueError(f"calling {self.key} failed: {type(e).__name__}: {e}") from None
        if not isinstance(made, nn.Module):
            raise ValueError(
                f"{self.key}: expected it to return a torch.nn.Module, got {type(made).__name__}"
            )
        _fill_lazy(made, torch.zeros(1, channels, size, size))
        return made


def _fill_lazy(network: nn.Module, x: Tensor) -> None:
    """Let layers that learn their widths from the first images (torch's lazy ones) see some."""
    if any(is_lazy(p) for p in network.parameters()):
        try:
            with torch.no_grad():
                network.eval()(x)
        except Exception as e:  # the network is anybody's
            raise ValueError(f"it does not take images of shape {tuple(x.shape[1:])}: {e}") from None
        network.train()


@functools.cache
def spec_of(factory: Factory, reference: str) -> type[ModelSpec]:
    """The settings of a factory: its parameters, but those that the data fill in (``GIVEN``).

    Args:
        factory: a subclass of ``nn.Module``, or a function that returns a network.
        reference: ``package.module:name``, what a config calls it.

    Raises:
        ValueError: a parameter that no setting can be made of.
    """
    call: object = factory.__init__ if inspect.isclass(factory) else factory
    parameters = list(inspect.signature(factory).parameters.values())
    hints = _hints(call, reference)
    fields: list[tuple[str, Any, Any]] = []
    given: dict[str, str] = {}
    lists: set[str] = set()
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if p.kind == p.POSITIONAL_ONLY or p.name in ("mean", "std", "name"):
            taken = "is positional only" if p.kind == p.POSITIONAL_ONLY else "is a key of every model"
            raise ValueError(
                f"{reference}: its parameter {p.name} {taken}: rename it, or derive from ModelSpec"
            )
        if p.name in GIVEN:
            given[p.name] = GIVEN[p.name]
            continue
        hint = hints.get(p.name, Any if p.default is p.empty or p.default is None else type(p.default))
        if hint is list or typing.get_origin(hint) is list:
            lists.add(p.name)
            hint = types.GenericAlias(tuple, (*(typing.get_args(hint) or (Any,)), ...))
        default = tuple(p.default) if isinstance(p.default, list) else p.default
        fields.append((p.name, hint, dataclasses.MISSING if p.default is p.empty else default))
    return _made(factory, reference, fields, {"given": given, "lists": frozenset(lists)})


def _again(factory: Factory, reference: str, settings: Mapping[str, Any]) -> ModelSpec:
    return spec_of(factory, reference)(**settings)


def _hints(call: object, reference: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(call)
    except Exception as e:  # annotations are expressions of anybody's
        raise ValueError(f"{reference}: its annotations cannot be read: {type(e).__name__}: {e}") from None


def _made(
    factory: Factory, reference: str, fields: list[tuple[str, Any, Any]], facts: Mapping[str, Any]
) -> type[ModelSpec]:
    """The class; it stands in the factory's module, whose source so belongs to what the network is."""
    doc = (inspect.getdoc(factory) or "").partition("\n")[0]
    namespace: dict[str, Any] = {
        **facts,
        "key": reference,
        "factory": staticmethod(factory),
        "__doc__": doc or f"The network of {reference}.",
        # At a prompt there is no source: the code of a class is its methods' then.
        **{
            f"_of_{k}": staticmethod(v) for k, v in vars(factory).items() if isinstance(v, types.FunctionType)
        },
    }
    listed = [
        (n, h) if d is dataclasses.MISSING else (n, h, dataclasses.field(default=d)) for n, h, d in fields
    ]
    try:
        cls = dataclasses.make_dataclass(
            factory.__name__, listed, bases=(FactorySpec,), namespace=namespace, frozen=True, kw_only=True
        )
    except (TypeError, ValueError) as e:
        raise ValueError(f"{reference}: no settings can be made of its parameters: {e}") from None
    cls.__module__, cls.__qualname__ = factory.__module__, factory.__qualname__
    return typing.cast("type[ModelSpec]", cls)
