"""Calls of PreTrainedModel and nn.Module that mean nothing for weights bound by the core.

What a script does out of habit and can go on without is ignored, with a warning where it hoped for
something; what it cannot go on without is refused, with what to do instead.
"""

import warnings

import torch

from ktransformers.errors import UserError

PLACES = "a rule file says where each module runs (optimize_config_path)"
IN_FILE = "its weights are those of its GGUF file, as they are stored there"


def _refused(name: str, why: str):
    def method(self, *args, **kwargs):
        raise UserError(f"model.{name}: {why}")

    method.__name__ = name
    method.__doc__ = f"Not for this model: {why}."
    return method


class Restrictions:
    """Comes before PreTrainedModel."""

    save_pretrained = _refused("save_pretrained", f"{IN_FILE}; copy that")
    push_to_hub = _refused("push_to_hub", f"{IN_FILE}; upload that")
    resize_token_embeddings = _refused("resize_token_embeddings", IN_FILE)
    load_state_dict = _refused("load_state_dict", IN_FILE)
    __deepcopy__ = _refused("__deepcopy__", "cannot be copied; load the file a second time")
    __reduce_ex__ = _refused(
        "__reduce_ex__", "cannot be pickled or copied; load the file where it is needed"
    )

    def to(self, *args, **kwargs):
        """Accepts the device the model is on; ignores types, with a warning."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != "cpu":
            raise UserError(f"model.to('{device}'): {PLACES}")
        if dtype not in (None, torch.float32):
            warnings.warn(f"model.to({dtype}) changes nothing: {IN_FILE}", stacklevel=2)
        return self

    def cuda(self, device=None):
        return self.to(torch.device("cuda" if device is None else device))

    def half(self, *args):
        return self.to(torch.float16)

    def bfloat16(self, *args):
        return self.to(torch.bfloat16)

    def float(self, *args):
        return self

    def double(self, *args):
        return self.to(torch.float64)

    def tie_weights(self, *args, **kwargs) -> None:
        """Nothing to do: a tied head was bound to the embedding's blocks at loading."""

    def compile(self, *args, **kwargs) -> None:
        """Nothing to do: the layers run in the core."""

    def train(self, mode: bool = True):
        """Raises: UserError for training; `eval()` comes here with mode False."""
        if mode:
            raise UserError("model.train: operators have no gradients; the model only infers")
        return super().train(False)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Values of the weights in the file; none of them is trainable."""
        if only_trainable:
            return 0
        skipped = ("token_embd.weight",) if exclude_embeddings else ()
        tensors = self.kt.gguf.tensors.items()
        count = 0
        for name, info in tensors:
            if name in skipped:
                continue
            size = 1
            for n in info.shape:
                size *= n
            count += size
        return count

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights in memory."""
        return sum(self.kt.plan.device_bytes().values())
