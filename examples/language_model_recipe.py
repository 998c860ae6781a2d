"""A language model of transformers as a recipe: any model by its name or folder.

prunus run examples/language_model_recipe.py --set checkpoint=NAME --data FOLDER

The data are a data set with a column text and the splits train, validation and test.
"""

import torch
from datasets import load_dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunus

settings = {
    "dense_epochs": 1,
    "epochs": 3,
    "batch_size": 8,
    "dense_lr": 5e-5,
    "lr": 5e-5,
    "ratio": 2,
    "checkpoint": "openai-community/gpt2",
    "length": 256,
}


def network(checkpoint: str) -> nn.Module:
    """Load the model."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(checkpoint, use_cache=False)
    return model


def loaders(
    batch_size: int, checkpoint: str, length: int, data: str = "Salesforce/wikitext"
) -> list[DataLoader[Tensor]]:
    """Return batches of texts of so many tokens, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    splits = load_dataset(data)

    def tokens(split: str) -> Tensor:
        ids = tokenizer("\n".join(splits[split]["text"]))["input_ids"]
        return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)

    return [
        DataLoader(tokens(split), batch_size, shuffle=split == "train")  # type: ignore[arg-type]
        for split in ("train", "validation", "test")
    ]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the cross-entropy of the next token."""
    value: Tensor = model(input_ids=batch, labels=batch).loss
    return value


def perplexity(model: nn.Module, loader: DataLoader[Tensor]) -> float:
    """Return the exponential of the mean loss."""
    losses = torch.cat([loss(model, batch).expand(len(batch)) for batch in loader])
    return float(losses.mean().exp())


metric, mode = perplexity, "min"


def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return AdamW, as models of transformers are fine-tuned with."""
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def selection(model: nn.Module) -> prunus.Selection:
    """Return the weights of the layers: the embeddings and the head, often tied, stay dense."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    names = [name for name, module in model.named_modules() if module is head]
    return prunus.select(model, exclude=[nn.Embedding, *names])
