"""From a checkpoint to a model: rebuild it from its config, once its weights are known to fit."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minivlm.captioner import Captioner
from minivlm.clip import CLIP, CLIPConfig
from minivlm.gpt import GPT, GPTConfig
from minivlm.heads import RewardModel
from minivlm.lora import merged
from minivlm.running.files import first_line
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM, VLMConfig

MOST_LAYERS = 1000
MOST = 10_000_000  # of any other size; the largest vocabularies have some 300 thousand tokens


def vlm_from(state: dict) -> VLM:
    """The VLM of a checkpoint, LoRA merged; of several models in it, the policy.

    Args:
        state: as `checkpoint.load` gives it.

    Raises:
        ValueError: as `rebuild`.
    """
    def pick(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if state.get("stage") in ("caption", "ppo"):
            weights = without_prefix(weights, "vlm.")
        return merged(weights)

    return rebuild(state, lambda d: VLM(VLMConfig.from_dict(d)), pick)


def clip_from(state: dict) -> CLIP:
    """The CLIP of a checkpoint or of published weights; raises as `rebuild`."""
    return rebuild(state, lambda d: CLIP(CLIPConfig.from_dict(d)))


def captioner_from(state: dict) -> Captioner:
    """The captioner of a checkpoint, with its contrastive and matching heads; as `rebuild`."""
    return rebuild(state, lambda d: Captioner(VLMConfig.from_dict(d)))


def reward_model_from(state: dict) -> RewardModel:
    """The reward model of a checkpoint, its normalization included; raises as `rebuild`."""
    return rebuild(state, lambda d: RewardModel(VLM(VLMConfig.from_dict(d))), merged)


def gpt_from(state: dict) -> GPT:
    """The language model of a checkpoint; raises as `rebuild`."""
    return rebuild(state, lambda d: GPT(GPTConfig(**d)))


def take_towers(vlm: VLM, clip: dict, lm: dict) -> None:
    """Give a VLM the ViT of a CLIP and a language model, both as `checkpoint.load` gives them."""
    vlm.vit.load_state_dict(without_prefix(clip["model"], "vit."))
    vlm.gpt.load_state_dict(lm["model"])


def without_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one part of a model, by the part's own names."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def tower_configs(clip: dict, lm: dict) -> tuple[ViTConfig, GPTConfig]:
    """Sizes of a CLIP's ViT and of a language model, once it is known that their weights fit.

    Args:
        clip, lm: as `checkpoint.load` or pretrained.py gives them.

    Raises:
        ValueError: as `checkpoint.check_fit`.
    """
    described, text = clip["configs"].get("model"), lm["configs"].get("model")
    clip_name, lm_name = clip.get("file", "the checkpoint"), lm.get("file", "the checkpoint")
    check_sizes(described, clip_name)
    check_sizes(text, lm_name)
    check_fit(clip["model"], lambda: CLIP(CLIPConfig.from_dict(described)), clip_name)
    check_fit(lm["model"], lambda: GPT(GPTConfig(**text)), lm_name)
    return ViTConfig(**described["vit"]), GPTConfig(**text)


def rebuild(
    state: dict, make: Callable[[dict], nn.Module],
    pick: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> nn.Module:
    """Make the model that a checkpoint describes, and give it its weights.

    Args:
        state: as `load` gives it.
        make: configs["model"] -> the model.
        pick: all weights -> those of the model, by its own names.

    Raises:
        ValueError: if no such weights can be picked, or as `check_fit`.
    """
    name, config = state.get("file", "the checkpoint"), state["configs"].get("model")
    check_sizes(config, name)
    try:
        weights = pick(state["model"])
    except (LookupError, TypeError, RuntimeError) as error:  # half an adapter
        raise ValueError(f"{name} has weights that do not go together: {first_line(error)}") \
            from None
    check_fit(weights, lambda: make(config), name)
    model = make(config)
    model.load_state_dict(weights)
    return model


def check_fit(weights: dict[str, Tensor], make: Callable[[], nn.Module], name: str) -> None:
    """Refuse weights that are not those of a model, which is made without memory for this, so that
    sizes which the weights do not have cost nothing.

    Args:
        name: of the file, for the error.

    Raises:
        ValueError: if there is no such model, or a weight is missing, unknown or of another shape.
    """
    try:
        with torch.device("meta"), _Unfilled():
            wanted = make().state_dict()
    except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError, RuntimeError) as e:
        raise ValueError(f"{name} describes no model that can be built: {first_line(e)}") from None
    has, needs = ({k: list(v.shape) for k, v in d.items()} for d in (weights, wanted))
    wrong = sorted(k for k in has | needs if has.get(k) != needs.get(k))
    if wrong:
        raise ValueError(
            f"{name} has {len(wrong)} weights that do not fit its own description, for instance "
            f"{wrong[0][:80]!r}: expected {needs.get(wrong[0], 'none')}, got "
            f"{has.get(wrong[0], 'none')}"
        )


class _Unfilled(TorchFunctionMode):
    """Within it no weights are drawn: a tensor without memory needs none, and torch would load two
    seconds' worth of modules to draw them.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.__name__ == "normal_":  # the tensor's own, and torch.nn.init's
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_sizes(config: object, name: str) -> None:
    """Refuse sizes that no model has: a checkpoint may come from anybody.

    Args:
        config: the plain dicts that describe a model.
        name: of the file, for the error.

    Raises:
        ValueError: for a number of layers outside 1 .. 1,000, or any other size outside
            1 .. 10 million.
    """
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        check_sizes(value, name)
        is_size = str(key).startswith(("n_", "text_n_", "vocab_", "block_", "text_block_", "image_size", "patch_"))
        most = MOST_LAYERS if str(key).endswith("n_layer") else MOST
        if is_size and not (type(value) is int and 1 <= value <= most):
            raise ValueError(f"{name}: {key} {value!r} is no size, expected a number in 1 .. {most:,}")
