"""From checkpoints to models: check that weights and described model fit, then build it."""

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

# which fields of ViTConfig, GPTConfig and CLIPConfig are sizes; in CLIPConfig those of the
# text tower begin with text_
SIZES = (
    "image_size", "patch_size", "vocab_size", "block_size", "n_layer", "n_head", "n_embd",
)
MAX_LAYERS = 1000
MAX_SIZE = 10_000_000  # of all others; the largest vocabularies have about 300,000 tokens


def vlm_from(state: dict) -> VLM:
    """The VLM of a checkpoint, LoRA merged; of PPO's models, the policy.

    Args:
        state: as `checkpoint.load` returns it.

    Raises:
        ValueError: as `rebuild`.
    """
    def pick(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if state.get("stage") in ("caption", "ppo"):  # Captioner and Learner hold a VLM
            weights = without_prefix(weights, "vlm.")
        return merged(weights)

    return rebuild(state, lambda config: VLM(VLMConfig.from_dict(config)), pick)


def clip_from(state: dict) -> CLIP:
    """The CLIP of a checkpoint or of published weights; raises as `rebuild`."""
    return rebuild(state, _make_clip)


def captioner_from(state: dict) -> Captioner:
    """The captioner of a checkpoint, with its two heads; raises as `rebuild`."""
    return rebuild(state, lambda config: Captioner(VLMConfig.from_dict(config)))


def reward_model_from(state: dict) -> RewardModel:
    """The reward model of a checkpoint, with its normalization; raises as `rebuild`."""
    def make(config: dict) -> RewardModel:
        return RewardModel(VLM(VLMConfig.from_dict(config)))

    return rebuild(state, make, merged)


def gpt_from(state: dict) -> GPT:
    """The language model of a checkpoint; raises as `rebuild`."""
    return rebuild(state, _make_gpt)


def take_towers(vlm: VLM, clip: dict, lm: dict) -> None:
    """Load the weights of a CLIP's ViT and of a language model into a VLM.

    Args:
        clip, lm: as `checkpoint.load` or pretrained/weights.py returns them.
    """
    vlm.vit.load_state_dict(without_prefix(clip["model"], "vit."))
    vlm.gpt.load_state_dict(lm["model"])


def tower_configs(clip: dict, lm: dict) -> tuple[ViTConfig, GPTConfig]:
    """The configs of a CLIP's ViT and of a language model whose weights fit their configs.

    Args:
        clip, lm: as `checkpoint.load` or pretrained/weights.py returns them.

    Raises:
        ValueError: as `checked_config`.
    """
    clip_config = checked_config(clip, clip["model"], _make_clip)
    lm_config = checked_config(lm, lm["model"], _make_gpt)
    return ViTConfig(**clip_config["vit"]), GPTConfig(**lm_config)


def _make_clip(config: dict) -> CLIP:
    return CLIP(CLIPConfig.from_dict(config))


def _make_gpt(config: dict) -> GPT:
    return GPT(GPTConfig(**config))


def rebuild(
    state: dict,
    make: Callable[[dict], nn.Module],
    pick: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> nn.Module:
    """Make the model that a checkpoint describes, and load its weights.

    Args:
        state: as `checkpoint.load` returns it.
        make: takes configs["model"], returns the model.
        pick: takes all weights, returns those of the model under the model's own names.

    Raises:
        ValueError: if `pick` fails, or as `checked_config`.
    """
    # weights are checked before the model is made: a forged config might ask for any memory
    try:
        weights = pick(state["model"])
    except (LookupError, TypeError, RuntimeError) as error:  # for instance half an adapter
        name = state.get("file", "the checkpoint")
        raise ValueError(
            f"{name} has weights that do not go together: {first_line(error)}"
        ) from None
    config = checked_config(state, weights, make)
    model = make(config)
    model.load_state_dict(weights)
    return model


def checked_config(
    state: dict, weights: dict[str, Tensor], make: Callable[[dict], nn.Module]
) -> dict:
    """The config of a checkpoint's model; raises as `check_sizes` and `check_fit`."""
    name = state.get("file", "the checkpoint")
    config = state["configs"].get("model")
    check_sizes(config, name)
    check_fit(weights, lambda: make(config), name)
    return config


def check_fit(weights: dict[str, Tensor], make: Callable[[], nn.Module], name: str) -> None:
    """Refuse weights unless a model has exactly these, by name and shape.

    The model is made on torch's meta device, without memory: a forged config of a terabyte
    costs nothing.

    Args:
        name: of the file, for the error.

    Raises:
        ValueError: if the model cannot be built, or if a weight is missing, unknown or of
            another shape.
    """
    try:
        with torch.device("meta"), _NoInit():
            model = make()
    except (
        TypeError, LookupError, AttributeError, ValueError, ArithmeticError, RuntimeError,
    ) as error:
        raise ValueError(
            f"{name} describes no model that can be built: {first_line(error)}"
        ) from None
    got = {key: list(value.shape) for key, value in weights.items()}
    expected = {key: list(value.shape) for key, value in model.state_dict().items()}
    # a missing or an unknown weight differs from None
    wrong = sorted(key for key in got | expected if got.get(key) != expected.get(key))
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"{name} has {len(wrong)} weights that do not fit its own config, for instance "
            f"{first[:80]!r}: expected {expected.get(first, 'none')}, "
            f"got {got.get(first, 'none')}"
        )


class _NoInit(TorchFunctionMode):
    """Within it, `normal_` draws nothing.

    Tensors on the meta device have no values to draw, and torch would import modules for
    two seconds to draw them.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.__name__ == "normal_":  # Tensor.normal_, and torch.nn.init.normal_
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_sizes(config: object, name: str) -> None:
    """Refuse sizes that no model has, before anything is made of them.

    Anybody may have written the checkpoint: a size could be a text, negative, or a billion.

    Args:
        config: the config of a model as plain dicts; `check_fit` refuses anything else.
        name: of the file, for the error.

    Raises:
        ValueError: for a number of layers outside 1 .. 1,000, or any other size outside
            1 .. 10 million.
    """
    if not isinstance(config, dict):
        return
    # not recursive: a forged config may be nested deeper than Python's stack
    for part in (config, config.get("vit"), config.get("gpt")):
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            size = str(key).removeprefix("text_")
            if size not in SIZES:
                continue
            most = MAX_LAYERS if size == "n_layer" else MAX_SIZE
            # not isinstance: True is an int too
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(
                    f"{name}: {key} is {str(value)[:40]}, "
                    f"expected a whole number in 1 .. {most:,}"
                )


def without_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one part of a model, under the part's own names.

    >>> without_prefix({"vit.pos": 1, "gpt.wpe.weight": 2}, "vit.")
    {'pos': 1}
    """
    return {
        key.removeprefix(prefix): value
        for key, value in weights.items() if key.startswith(prefix)
    }
