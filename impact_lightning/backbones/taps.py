"""Taps: read and change the activations of a vision transformer while it runs.

    with capture(model, ["blocks.*.resid_post"]) as activations:
        model(images)
    with patch(model, {"blocks.3.mlp_out": torch.zeros_like}):
        logits = model(images)

Taps nest in any order. Of several patches of one site the outer acts first, the inner on its result. A capture sees
the value that flows on, after every patch of its site, whether the patch stands inside or outside of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .sites import Site, check_supported, expand_sites, hook_point, match_sites, site_names

Edit = Callable[[Tensor], Tensor]


class Captured(dict[str, Tensor]):
    """The activations of the last forward, by site."""

    def __missing__(self, site: str) -> Tensor:
        """Say what happened instead of a bare key."""
        raise KeyError(f"{site!r} was not captured: it was not asked for, or no forward has passed it")


@contextmanager
def capture(model: nn.Module, sites: str | Iterable[str], *, stop: bool = True) -> Iterator[Captured]:
    """Hold the activations at `sites` of every forward inside the `with`; those of the last forward stay.

    Open it once around a loop: each forward then takes over the memory of the one before, and no page is new.

    Nothing is copied: residual sites share memory with what the model computes on, and q, k and v are views. In grad
    mode the graph is kept, and every captured tensor except `attn_probs` lies on the path to the logits (for this alone
    q, k and v are copied). `attn_probs` is computed beside the fused kernel, before attention dropout; its gradient is
    `dO V^T`, with dO the gradient at `head_out`.

    Args:
        model: A model that `check_supported` accepts, in its wrappers or not. Compiled code runs eagerly inside the
            `with`, since it ignores hooks that are younger than itself.
        sites: Names or globs of sites.
        stop: End the forward after the last site that any open capture needs; `model(images)` then returns None. One
            open capture with `stop=False` lets it run to its end.
    """
    tap = _Tap(sites=frozenset(expand_sites(model, sites)), stop=stop)
    with _open(model, tap):
        yield tap.captured


@contextmanager
def patch(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Let `edits[site](activation)` flow on in the place of the activation, in every forward inside the `with`.

    The result needs the shape of the activation and takes its dtype. An edit that returns its argument changes no bit.

    Args:
        model: As in `capture`.
        edits: For each site, or glob, a function of the activation. Where globs overlap, all act in the given order.
    """
    tap, names = _Tap(), site_names(model)
    for pattern, edit in edits.items():
        for site in match_sites(pattern, names):
            tap.edits.setdefault(site, []).append(edit)
    with _open(model, tap):
        yield


class _Stop(Exception):
    """Every captured site has been seen: the rest of the forward is not needed."""


@dataclass(eq=False)
class _Tap:
    """One open `with`: what it changes and what it holds."""

    edits: dict[str, list[Edit]] = field(default_factory=dict)
    sites: frozenset[str] = frozenset()
    captured: Captured = field(default_factory=Captured)
    stop: bool = True


@contextmanager
def _open(wrapped: nn.Module, tap: _Tap) -> Iterator[None]:
    model = check_supported(wrapped)
    if model.grad_checkpointing:
        raise ValueError("gradient checkpointing runs blocks twice, and a tap would too: set_grad_checkpointing(False)")
    forward = vars(model).get("forward")
    tapped = forward if isinstance(forward, _TappedForward) else _TappedForward(model)
    with torch.compiler.set_stance("force_eager"):
        try:
            tapped.set_taps([*tapped.taps, tap])
            yield
        finally:
            tapped.set_taps([other for other in tapped.taps if other is not tap])


class _TappedForward:
    """Stands in for `model.forward` while a tap is open, and owns the hooks of all sites in use, each once."""

    def __init__(self, model: VisionTransformer) -> None:
        self.model = model
        self.names = site_names(model)
        self.forward = model.forward
        self.is_overridden = "forward" in vars(model)  # by someone else, who wants it back
        self.taps: list[_Tap] = []
        self.hooks: list[RemovableHandle] = []
        self.unseen: set[str] = set()  # captured sites that the running forward has still to pass

    def set_taps(self, taps: list[_Tap]) -> None:
        """Hook the sites of these taps, in the order of execution, and no others."""
        for hook in self.hooks:
            hook.remove()
        self.taps, self.hooks = taps, []
        if taps:
            vars(self.model)["forward"] = self
        elif self.is_overridden:
            vars(self.model)["forward"] = self.forward
        else:
            vars(self.model).pop("forward", None)
        self.hooks.extend(self._hook_sites())

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Run the model; return None if it was stopped after the last site."""
        if (len(args) > 1 or kwargs) and any(site.name == "attn_probs" for site in self._sites()):
            raise ValueError("attn_probs is computed without an attention mask: call the model with images alone")
        self.unseen = {site for tap in self.taps for site in tap.sites}
        try:
            logits = self.flow("logits", self.forward(*args, **kwargs))
        except _Stop:
            return None
        else:
            if self.unseen:
                raise RuntimeError(f"the forward did not pass {sorted(self.unseen)}: has a module been replaced?")
            return logits
        finally:
            self.unseen = set()

    def flow(self, site: str, value: Tensor) -> Tensor:
        """Return what flows on at a site, after its patches, and hand it to the captures."""
        for tap in self.taps:
            for edit in tap.edits.get(site, ()):
                value = _edited(site, value, edit)
        for tap in self.taps:
            if site in tap.sites:
                tap.captured[site] = value
        if site in self.unseen:
            self.unseen.remove(site)
            if not self.unseen and all(tap.stop for tap in self.taps):
                raise _Stop
        return value

    def _sites(self) -> list[Site]:
        used = {site for tap in self.taps for site in (*tap.sites, *tap.edits)}
        return [Site.parse(site) for site in self.names if site in used]

    def _hook_sites(self) -> Iterator[RemovableHandle]:
        edited = {site for tap in self.taps for site in tap.edits}
        # q, k and v come out of one module and share one hook
        for (module, side), group in groupby(self._sites(), key=partial(hook_point, self.model)):
            site = str(next(group))
            prefix, _, kind = site.rpartition(".")
            if kind == "logits":
                continue  # seen by the call itself
            if kind in ("q", "k", "v"):
                yield _hook_thirds(module, prefix, self.flow)
            elif kind == "attn_probs":
                attn = self.model.get_submodule(f"{prefix}.attn")
                yield from _hook_probs(attn, site, self.flow, is_edited=site in edited)
            elif kind == "resid_mid" and site in edited:
                yield from _hook_resid_mid(self.model.get_submodule(prefix), site, self.flow)
            elif side == "input":
                yield _hook_input(module, site, self.flow)
            else:
                yield _hook_output(module, site, self.flow)


Flow = Callable[[str, Tensor], Tensor]  # what flows on at a site, given what arrives there


def _hook_input(module: nn.Module, site: str, flow: Flow) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda _, args: (flow(site, args[0]), *args[1:]))


def _hook_output(module: nn.Module, site: str, flow: Flow) -> RemovableHandle:
    return module.register_forward_hook(lambda _, _args, output: flow(site, output))


def _hook_thirds(qkv: nn.Module, prefix: str, flow: Flow) -> RemovableHandle:
    def split(_: nn.Module, _args: tuple[Tensor], output: Tensor) -> Tensor:
        thirds = output.chunk(3, dim=-1)  # (B, T, 3*H*h) -> 3 x (B, T, H*h)
        flowing = [flow(f"{prefix}.{name}", third) for name, third in zip("qkv", thirds, strict=True)]
        is_unchanged = all(new is old for new, old in zip(flowing, thirds, strict=True))
        if is_unchanged and not (torch.is_grad_enabled() and output.requires_grad):
            return output
        return torch.cat(flowing, dim=-1)  # also for gradients: a view lies beside the path to the logits

    return qkv.register_forward_hook(split)


def _hook_resid_mid(block: Any, site: str, flow: Flow) -> Iterator[RemovableHandle]:
    """Yield hooks that replace y in `x = y + mlp(norm2(y))`: the block reads y twice, and a hook sees one of them."""
    held: dict[str, Tensor] = {}

    def read(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        held["stream"] = flow(site, args[0])
        return (held["stream"],)

    yield block.norm2.register_forward_pre_hook(read)
    yield block.drop_path2.register_forward_hook(_hold(held, "branch"))
    yield block.register_forward_hook(lambda *_: held.pop("stream") + held.pop("branch"))


def _hook_probs(attn: Any, site: str, flow: Flow, *, is_edited: bool) -> Iterator[RemovableHandle]:
    """Yield hooks that compute A = softmax(q k^T / sqrt(h)) beside the fused kernel, and O = A v if A changes."""
    held: dict[str, Tensor] = {}

    def attend(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        q, k, v = held.pop("q"), held.pop("k"), held.pop("qkv").chunk(3, dim=-1)[2]
        probs = (q * attn.scale @ k.mT).softmax(dim=-1)  # (B, H, T, h) x (B, H, h, T) -> (B, H, T, T)
        if is_edited and attn.training and attn.attn_drop.p > 0:
            raise ValueError(f"{site} is patched with attention dropout on, whose mask the fused kernel hides")
        before = probs.clone() if is_edited else probs
        patched = flow(site, probs)
        if not is_edited or (patched is probs and torch.equal(probs, before)):
            return args  # unchanged, also not in place: the output of the fused kernel flows on, bit for bit
        v = v.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)  # (B, T, H*h) -> (B, H, T, h)
        output = (patched @ v).transpose(1, 2).flatten(2)  # (B, H, T, h) -> (B, T, H, h) -> (B, T, H*h)
        return (output.to(args[0].dtype),)

    yield attn.qkv.register_forward_hook(_hold(held, "qkv"))
    yield attn.q_norm.register_forward_hook(_hold(held, "q"))
    yield attn.k_norm.register_forward_hook(_hold(held, "k"))
    yield attn.norm.register_forward_pre_hook(attend)


def _hold(held: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
    def hook(_: nn.Module, _args: tuple[Tensor], output: Tensor) -> None:
        held[name] = output

    return hook


def _edited(site: str, value: Tensor, edit: Edit) -> Tensor:
    edited = edit(value)
    if not isinstance(edited, Tensor):
        raise ValueError(f"the patch of {site} returned {type(edited).__name__} instead of a tensor")
    if edited.shape != value.shape:
        raise ValueError(f"the patch of {site} returned shape {tuple(edited.shape)} for {tuple(value.shape)}")
    return edited.to(value.dtype)  # under autocast an edit in float32 must not widen what follows
