"""A pack for the tests: a node that keeps an IMAGE as it is, where SaveImage would round it to 8 bits; and one that treats a VAE as
newer ComfyUIs' SelectVAEDevice does."""

import copy

import folder_paths
from safetensors.torch import save_file


class ProbeKeep:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "probe", "keep", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}, "hidden": {"node_id": "UNIQUE_ID"}}

    def keep(self, images, node_id):
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            "kept", folder_paths.get_output_directory()
        )
        file = f"{name}_{counter:05}_{node_id}.safetensors"
        save_file({"images": images.contiguous()}, f"{folder}/{file}")
        return {"ui": {"kept": [{"filename": file, "subfolder": subfolder, "type": "output"}]}}


class ProbeCopyVAE:
    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "copy", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",)}}

    def copy(self, vae):
        vae = copy.copy(vae)
        vae.patcher = vae.patcher.clone()
        return (vae,)


NODE_CLASS_MAPPINGS = {"ProbeKeep": ProbeKeep, "ProbeCopyVAE": ProbeCopyVAE}
