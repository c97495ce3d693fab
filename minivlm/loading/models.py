"""Rebuild models from checkpoints.

Anybody may have written a checkpoint. So its weights must fit the model that its config
describes, and this is checked before the model takes up any memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minivlm.captioner import Captioner
from minivlm.clip import CLIP, CLIPConfig
from minivlm.gpt import GPT, GPTConfig
from minivlm.heads import RewardModel
from minivlm.loading.images import FITS
from minivlm.lora import merged
from minivlm.running.files import brief, first_line
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM, VLMConfig

# the fields of ViTConfig, GPTConfig and CLIPConfig that are sizes; in CLIPConfig the names
# of the text tower's fields begin with text_
SIZES = (
    "image_size", "patch_size", "vocab_size", "block_size", "n_layer", "n_head", "n_embd",
)
OPTIONAL_SIZES = ("n_inner", "n_kv_head", "head_dim", "pad_id")  # 0 has a meaning
HALVES = (torch.bfloat16, torch.float16)
MAX_LAYERS = 1000  # most n_layer; GPT-3 has 96
MAX_SIZE = 10_000_000  # most of any other; large vocabularies have about 300,000 tokens


def vlm_from(state: dict, take: bool = False, half: bool = False) -> VLM:
    """Rebuild the VLM of a checkpoint, with LoRA's adapters merged into its weights.

    A checkpoint of train_ppo.py holds several models; the VLM is its policy.

    Args:
        state, take, half: as for `rebuild`.

    Raises:
        ValueError: as `rebuild`.
    """
    def pick(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if state.get("stage") in ("caption", "ppo"):  # a Captioner or a Learner has a .vlm
            weights = without_prefix(weights, "vlm.")
        return merged(weights)

    return rebuild(state, lambda config: VLM(VLMConfig.from_dict(config)), pick, take, half)


def clip_from(state: dict) -> CLIP:
    """Rebuild the CLIP of a checkpoint or of published weights; raises as `rebuild`."""
    return rebuild(state, _make_clip)


def captioner_from(state: dict) -> Captioner:
    """Rebuild the captioner of a checkpoint, with its two heads; raises as `rebuild`."""
    return rebuild(state, lambda config: Captioner(VLMConfig.from_dict(config)))


def reward_model_from(state: dict, take: bool = False, half: bool = False) -> RewardModel:
    """Rebuild the reward model of a checkpoint, with the normalization of its scores.

    LoRA's adapters are merged. Takes `take` and `half`, and raises, as `rebuild`.
    """
    def make(config: dict) -> RewardModel:
        # older checkpoints do not say it
        return RewardModel(VLM(VLMConfig.from_dict(config)), state["configs"].get("pool", "last"))

    return rebuild(state, make, merged, take, half)


def gpt_from(state: dict) -> GPT:
    """Rebuild the language model of a checkpoint; raises as `rebuild`."""
    return rebuild(state, _make_gpt)


def fit_of(state: dict) -> str:
    """Say how the pictures that a checkpoint's model has learned from were made square.

    Args:
        state: as `checkpoint.load` returns it.

    Returns:
        a mode of `images.fit`; "crop" for older checkpoints, which do not say it.

    Raises:
        ValueError: if the checkpoint names another mode.
    """
    mode = state["configs"].get("fit", "crop")
    if mode not in FITS:
        raise ValueError(
            f"{state.get('file', 'the checkpoint')} has fit {brief(mode)}, "
            f"expected one of {', '.join(FITS)}"
        )
    return mode


def take_towers(vlm: VLM, clip: dict, lm: dict) -> None:
    """Put a CLIP's ViT and a language model into a VLM, which takes over their tensors.

    The VLM must have been made with the configs that `tower_configs` returned for the two.

    Args:
        clip, lm: as `checkpoint.load` or pretrained/weights.py returns them; they have no
            weights afterwards.
    """
    vlm.vit.load_state_dict(without_prefix(clip["model"], "vit."), assign=True)
    vlm.gpt.load_state_dict(lm["model"], assign=True)
    vlm.gpt.tie()
    for state in (clip, lm):
        let_go(state)


def let_go(state: dict) -> None:
    """Drop a checkpoint's tensors: its model has taken them over, or has copies."""
    state["model"] = {}
    state["optimizer"] = None


def tower_configs(clip: dict, lm: dict) -> tuple[ViTConfig, GPTConfig]:
    """Return the configs of a CLIP's ViT and of a language model.

    Both are checked: the weights of the CLIP and of the language model fit them.

    Args:
        clip, lm: as `checkpoint.load` or pretrained/weights.py returns them.

    Raises:
        ValueError: as `checked`.
    """
    vit = checked(clip, clip["model"], _make_clip).vit
    gpt = checked(lm, lm["model"], _make_gpt)
    return vit.config, gpt.config


def _make_clip(config: dict) -> CLIP:
    return CLIP(CLIPConfig.from_dict(config))


def _make_gpt(config: dict) -> GPT:
    return GPT(GPTConfig(**config))


def rebuild(
    state: dict,
    make: Callable[[dict], nn.Module],
    pick: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    take: bool = False,
    half: bool = False,
) -> nn.Module:
    """Make the model that a checkpoint describes, with its weights.

    Args:
        state: as `checkpoint.load` returns it.
        make: takes configs["model"], returns the model.
        pick: takes all weights of the checkpoint, returns those of the model under the
            model's own names.
        take: take the tensors out of `state`, so that they are in memory once. By default
            the model has copies.
        half: weights in half precision stay so, for a run that computes in bfloat16 and
            calls `place`. By default all become float32.

    Raises:
        ValueError: if `pick` fails; else as `checked`.
    """
    weights = dict(state["model"])
    if take:
        let_go(state)
    if not half:  # first of all: LoRA's sums must not be rounded to a narrower format
        for name, w in weights.items():
            weights[name] = w.float()
    # the weights are checked first: a forged config may ask for more memory than there is
    try:
        weights = pick(weights)
    # for instance an adapter of which A is there and B is missing
    except (LookupError, TypeError, RuntimeError) as error:
        name = state.get("file", "the checkpoint")
        raise ValueError(
            f"{name} has weights that do not go together: {first_line(error)}"
        ) from None
    model = checked(state, weights, make)
    if not take:
        weights = {name: w.clone() for name, w in weights.items()}
    model.load_state_dict(weights, assign=True)
    for module in model.modules():
        if isinstance(module, GPT):
            module.tie()
    return model


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model on torch's meta device, where tensors have a shape and take no memory."""
    with torch.device("meta"), _NoInit():
        return make()


def place(model: nn.Module, device: torch.device, half: bool) -> None:
    """Move a model to a device, with the number formats that a run computes with.

    All is float32 but, with `half`, the frozen linear maps and word embeddings of a VLM
    that were read in half precision: they stay so, and need half the memory. Autocast
    makes maps bfloat16 at every product, so no number changes.

    Args:
        model: its parameters that have requires_grad now will learn.
        half: whether the run computes in bfloat16, see `machine.is_bfloat16`.
    """
    large = set()
    for vlm in model.modules():
        if isinstance(vlm, VLM):  # heads beside it compute in float32
            for module in vlm.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
                    large.add(module.weight)
    for p in model.parameters():
        stays = half and p in large and not p.requires_grad and p.dtype in HALVES
        p.data = p.data.to(device, p.dtype if stays else torch.float32)
    model.to(device)  # the buffers


def checked(
    state: dict, weights: dict[str, Tensor], make: Callable[[dict], nn.Module]
) -> nn.Module:
    """Make a checkpoint's model on the meta device, if the weights fit it.

    Raises as `check_sizes` and `check_fit`.
    """
    name = state.get("file", "the checkpoint")
    config = state["configs"].get("model")
    check_sizes(config, name)
    return check_fit(weights, lambda: make(config), name)


def check_fit(
    weights: dict[str, Tensor], make: Callable[[], nn.Module], name: str
) -> nn.Module:
    """Refuse weights unless they have exactly the names and shapes of a model's weights.

    The model is made on torch's meta device, where tensors take up no memory. So a forged
    config of a terabyte does no harm.

    Args:
        make: makes the model.
        name: the file's name, for the error message.

    Returns:
        the model, on the meta device.

    Raises:
        ValueError: if the model cannot be built, or if a weight is missing, unknown or of
            another shape.
    """
    try:
        model = on_meta(make)
    except (
        TypeError, LookupError, AttributeError, ValueError, ArithmeticError, RuntimeError,
    ) as error:
        raise ValueError(
            f"{name} describes no model that can be built: {first_line(error)}"
        ) from None
    got = {key: list(value.shape) for key, value in weights.items()}
    expected = {key: list(value.shape) for key, value in model.state_dict().items()}
    # for a missing or an unknown weight, one side is None
    wrong = sorted(key for key in got | expected if got.get(key) != expected.get(key))
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"{name} has {len(wrong)} weights that do not fit its own config, for instance "
            f"{first[:80]!r}: expected {expected.get(first, 'none')}, "
            f"got {got.get(first, 'none')}"
        )
    return model


class _NoInit(TorchFunctionMode):
    """A context in which `normal_` does nothing.

    Tensors on the meta device have no values. To draw none, torch would still import
    modules for two seconds.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.__name__ == "normal_":  # Tensor.normal_, and torch.nn.init.normal_
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_sizes(config: object, name: str) -> None:
    """Refuse sizes that no model has, before a model is made with them.

    In a forged checkpoint a size could be a text, a negative number, or a billion.

    Args:
        config: the config of a model as plain dicts. Anything else passes here and is
            refused by `check_fit`.
        name: the file's name, for the error message.

    Raises:
        ValueError: for a number of layers outside 1 .. 1,000, or any other size outside
            1 .. 10 million; a size of which 0 says "as usual" may be 0.
    """
    if not isinstance(config, dict):
        return
    # not recursive: a forged config may be nested deeper than Python's stack
    for part in (config, config.get("vit"), config.get("gpt")):
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            size = str(key).removeprefix("text_")
            if size not in SIZES + OPTIONAL_SIZES:
                continue
            least = 1 if size in SIZES else 0
            most = MAX_LAYERS if size == "n_layer" else MAX_SIZE
            # not isinstance: True is an int too
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"{name}: {key} is {brief(value)}, "
                    f"expected a whole number in {least} .. {most:,}"
                )


def without_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights of one part of a model, under the part's own names.

    >>> without_prefix({"vit.pos": 1, "gpt.wpe.weight": 2}, "vit.")
    {'pos': 1}
    """
    return {
        key.removeprefix(prefix): value
        for key, value in weights.items() if key.startswith(prefix)
    }
