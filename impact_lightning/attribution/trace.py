"""A trace: what the blocks of one forward compute, read by hooks on modules that are always called.

Fused attention stays on: its probabilities and their gradients follow from what goes in and what comes out,

    A = softmax(q k^T / sqrt(h)),    O = A v,    dA = dO v^T.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

Place = tuple[nn.Module, Literal["input", "output"]]
Block = dict[str, Tensor]  # what one block computed, by place
ALL = slice(None)


def attention_places(block: Any) -> dict[str, Place]:
    """Return where a block shows its attention."""
    return {
        "qkv": (block.attn.qkv, "output"),  # (B, T, 3*H*h)
        "q": (block.attn.q_norm, "output"),  # (B, H, T, h); always called, also where there is no norm
        "k": (block.attn.k_norm, "output"),  # (B, H, T, h)
        "mixed": (block.attn.norm, "input"),  # (B, T, H*h), O
    }


def linear_places(block: Any) -> dict[str, Place]:
    """Return where a block shows what else the rules of relevance read, `(B, T, width)` each."""
    return {
        "resid_pre": (block, "input"),
        "attn_in": (block.attn.qkv, "input"),
        "proj_in": (block.attn.proj, "input"),
        "attn_out": (block.ls1, "output"),
        "resid_mid": (block.norm2, "input"),
        "mlp_in": (block.mlp.fc1, "input"),
        "hidden": (block.mlp.fc1, "output"),
        "neuron": (block.mlp.fc2, "input"),
        "mlp_out": (block.ls2, "output"),
        "resid_post": (block, "output"),
    }


def all_places(block: Any) -> dict[str, Place]:
    """Return where a block shows all that the rules of relevance read."""
    return attention_places(block) | linear_places(block)


def unscaled_places(block: Any) -> dict[str, Place]:
    """Return where a block shows what `all_places` names, and what its branches write before LayerScale."""
    unscaled: dict[str, Place] = {"proj_out": (block.attn.proj, "output"), "fc2_out": (block.mlp.fc2, "output")}
    return all_places(block) | unscaled


@contextmanager
def tracing(
    model: VisionTransformer,
    blocks: Sequence[int],
    places: Callable[[Any], dict[str, Place]],
    *,
    leaves: Sequence[int] = (),
    narrow: bool = False,
) -> Iterator[list[Block]]:
    """Hold what `blocks` compute in the forwards inside the `with`, as part of the graph.

    Args:
        model: A model that `check_supported` accepts.
        blocks: Numbers of the blocks that are read.
        places: What is read of a block.
        leaves: Blocks at which the graph begins anew: what they read is a constant, and their O a leaf.
        narrow: Compute the last block, from O on, for the first token only, where that alone is read. What it writes
            of the others is then of no use.
    """
    trace: list[Block] = [{} for _ in blocks]
    hooks = []
    try:
        for i in leaves:
            block: Any = model.blocks[i]
            hooks.append(block.register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:])))
            hooks.append(
                block.attn.norm.register_forward_pre_hook(lambda _, args: (args[0].detach().requires_grad_(),))
            )
        if narrow:
            last: Any = model.blocks[-1]
            hooks.append(last.attn.norm.register_forward_pre_hook(lambda _, args: (args[0][:, :1],)))
            # the sum of both branches: (B, T, D) + (B, 1, D); with one token after norm2 the next sum has T again
            hooks.append(last.norm2.register_forward_pre_hook(lambda _, args: (args[0][:, :1],)))
        for seen, i in zip(trace, blocks, strict=True):
            for name, (module, side) in places(model.blocks[i]).items():
                if side == "input":
                    hooks.append(module.register_forward_pre_hook(_hold_input(seen, name)))
                else:
                    hooks.append(module.register_forward_hook(_hold_output(seen, name)))
        yield trace
    finally:
        for hook in hooks:
            hook.remove()


def may_narrow(model: VisionTransformer, rows: slice) -> bool:
    """Tell whether the head reads the first token alone, and nobody else has a hook on what is left out."""
    end = (*model.blocks[-1].modules(), model.norm)
    is_hooked = any(module._forward_hooks or module._forward_pre_hooks for module in end)
    return rows == slice(0, 1) and not is_hooked


class Attended(NamedTuple):
    """The attention of R of the T tokens."""

    q: Tensor  # (B, H, R, h) divided by sqrt(h)
    k: Tensor  # (B, H, T, h)
    v: Tensor  # (B, H, T, h)
    scores: Tensor  # (B, H, R, T) q k^T / sqrt(h)
    probs: Tensor  # (B, H, R, T) A: each row sums to one


def attend(block: Any, seen: Block, rows: slice = ALL) -> Attended:
    """Return how the tokens `rows` of a block attended."""
    q, k = seen["q"][:, :, rows] * block.attn.scale, seen["k"]
    v = to_heads(seen["qkv"].chunk(3, dim=-1)[2], block.attn.num_heads)
    scores = q @ k.mT  # (B, H, R, h) x (B, H, h, T) -> (B, H, R, T)
    return Attended(q, k, v, scores, scores.softmax(dim=-1))


def prob_gradients(block: Any, attended: Attended, gradient: Tensor, rows: slice = ALL) -> Tensor:
    """Return dA `(B, H, R, T)`, from the gradient `(B, T, H*h)` at O."""
    d_mixed = to_heads(gradient[:, rows], block.attn.num_heads)  # (B, H, R, h)
    return d_mixed @ attended.v.mT


def of_images(seen: Block, images: slice) -> Block:
    """Return what was computed of some of the images."""
    return {name: x[images] for name, x in seen.items()}


def to_heads(x: Tensor, n_heads: int) -> Tensor:
    """Give each head its own channels, `(B, T, H*h) -> (B, H, T, h)`."""
    return x.reshape(*x.shape[:2], n_heads, -1).transpose(1, 2)


def from_heads(x: Tensor) -> Tensor:
    """Put the channels of the heads side by side, `(B, H, T, h) -> (B, T, H*h)`."""
    return x.transpose(1, 2).flatten(2)


def _hold_input(seen: Block, name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def hook(_: nn.Module, args: tuple[Tensor]) -> None:
        seen[name] = args[0]

    return hook


def _hold_output(seen: Block, name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
    def hook(_: nn.Module, _args: tuple[Tensor], output: Tensor) -> None:
        seen[name] = output

    return hook
