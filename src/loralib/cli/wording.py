"""What the library's errors say of calls in Python, said of options of the command line instead."""

PHRASES = {
    "load(path, keys={pattern: replacement})": "--keys FILE.json, a JSON object {pattern: replacement}",
    "LoRAConfig(lora_alpha=…, enable_lora=[True, False, True])": "--enable-lora true,false,true",
    "load(path, config=LoRAConfig(lora_alpha=16))": "--lora-alpha 16",
    "adapter.rename({'': 'unet'})": "--rename =unet",
    "format='safetensors'": "--format safetensors",
}


def as_options(message: str) -> str:
    """The message with calls replaced by options.

    >>> as_options("name one: adapter.rename({'': 'unet'}).")
    'name one: --rename =unet.'
    """
    for call, option in PHRASES.items():
        message = message.replace(call, option)
    return message
