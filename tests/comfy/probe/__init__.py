"""A pack for the tests: a node that keeps an IMAGE as it is, where SaveImage would round it to 8 bits; one that keeps all tensors
in a CONDITIONING or a LATENT; one that keeps what a patch of a model has encoded; and one that treats a VAE as newer ComfyUIs'
SelectVAEDevice does."""

import copy

import folder_paths
import torch
from safetensors.torch import save_file


class ProbeKeep:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "probe", "keep", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}, "hidden": {"node_id": "UNIQUE_ID"}}

    def keep(self, images, node_id):
        return kept({"images": images}, node_id)


class ProbeTensors:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "probe", "keep", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("CONDITIONING,LATENT",)}, "hidden": {"node_id": "UNIQUE_ID"}}

    def keep(self, value, node_id):
        return kept(dict(tensors_in(value)), node_id)


class ProbePatch:
    """Keeps what a patch of Qwen-Image has encoded, what it encodes anew when another size is sampled, and what it adds then."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "probe", "keep", (), True

    @classmethod
    def INPUT_TYPES(cls):
        sizes = {name: ("INT", {"default": 64, "step": 16}) for name in ("width", "height")}
        return {"required": {"model": ("MODEL",), **sizes}, "hidden": {"node_id": "UNIQUE_ID"}}

    def keep(self, model, width, height, node_id):
        (patch,) = model.model_options["transformer_options"]["patches"]["double_block"]
        found = {"encoded": patch.encoded_image.clone()}
        added = torch.zeros(1, width * height // 256, patch.encoded_image.shape[-1])
        patch({"x": torch.zeros(1, 16, 1, height // 8, width // 8), "img": added, "block_index": 0})
        return kept(found | {"encoded anew": patch.encoded_image, "added": added}, node_id)


class ProbeCopyVAE:
    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "copy", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",)}}

    def copy(self, vae):
        vae = copy.copy(vae)
        vae.patcher = vae.patcher.clone()
        return (vae,)


def kept(tensors, node_id):
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path("kept", folder_paths.get_output_directory())
    file = f"{name}_{counter:05}_{node_id}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, f"{folder}/{file}")
    return {"ui": {"kept": [{"filename": file, "subfolder": subfolder, "type": "output"}]}}


def tensors_in(value, name=""):
    """(name, tensor) of all that lies in nested dicts, lists and tuples; the name is the way there, with dots."""
    if torch.is_tensor(value):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors_in(part, f"{name}.{key}")


NODE_CLASS_MAPPINGS = {
    "ProbeKeep": ProbeKeep,
    "ProbeTensors": ProbeTensors,
    "ProbePatch": ProbePatch,
    "ProbeCopyVAE": ProbeCopyVAE,
}
