"""A program for every error class of loralib that raises it."""

import os
import tempfile

from loralib import LoRAError

EXAMPLES = {
    "ArgumentError": """
lora.inject("my-model", lora.LoRAConfig(r=8))
""",
    "ConfigError": """
lora.LoRAConfig(r=0)
""",
    "TargetError": """
model = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "v_proj": nn.Linear(8, 8)})
lora.inject(model, lora.LoRAConfig(r=2, target_modules=["q_porj"]))
""",
    "LayerError": """
lora.merge(nn.Sequential(nn.Linear(8, 8)))
""",
    "AttachError": """
small, large = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(16, 8))
lora.inject(small, lora.LoRAConfig(r=2))
lora.attach(large, lora.extract(small))
""",
    "FormatError": """
model = nn.Sequential(nn.Linear(8, 8))
lora.inject(model, lora.LoRAConfig(r=2))
lora.save(lora.extract(model), "my-adapter", format="gguf")
""",
    "AlgebraError": """
a = lora.Adapter(lora.LoRAConfig(), {"q": lora.LoRAUpdate(torch.ones(1, 3), torch.ones(5, 1), lora_alpha=1)})
b = lora.Adapter(lora.LoRAConfig(), {"q": lora.LoRAUpdate(torch.ones(1, 4), torch.ones(5, 1), lora_alpha=1)})
a + b
""",
    "DataError": """
from loralib.recipes.nlu.readers import read_file

with open("train.tsv", "w") as file:
    file.write("text\\tlabel\\nThe box was ugly.\\tnegative\\n")
read_file("train.tsv", "text", "sentiment")
""",
    "RunError": """
from pathlib import Path
from loralib.recipes.run_folder import read_options

read_options(Path("runs/mine"))  # as `loralib evaluate runs/mine` does
""",
}


def message_of(example: str) -> LoRAError:
    """The error that the example raises, in an empty folder."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec("import torch\nfrom torch import nn\nimport loralib as lora\n" + example, {})
        except LoRAError as error:
            return error
        finally:
            os.chdir(here)
    raise AssertionError(f"the example raises no LoRAError: {example}")
