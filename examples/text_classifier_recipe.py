"""A text classifier of transformers as a recipe: any model by its name or folder.

prunus run examples/text_classifier_recipe.py --set checkpoint=NAME --data FOLDER
"""

import torch
from datasets import load_dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import prunus

settings = {
    "dense_epochs": 2,
    "epochs": 4,
    "batch_size": 16,
    "dense_lr": 3e-5,
    "lr": 3e-5,
    "ratio": 2,
    "checkpoint": "distilbert/distilbert-base-uncased",
    "classes": 2,
    "length": 256,
}

Batch = dict[str, Tensor]


def network(checkpoint: str, classes: int) -> nn.Module:
    """Load the model, with a new head."""
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, num_labels=classes
    )
    return model


def loaders(
    batch_size: int, checkpoint: str, length: int, seed: int, data: str = "stanfordnlp/imdb"
) -> list[DataLoader[Batch]]:
    """Return batches of tokens; a tenth of the training texts validates."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def collate(rows: list[dict[str, str]]) -> Batch:
        texts, labels = zip(*((row["text"], row["label"]) for row in rows), strict=True)
        tokens = tokenizer(
            list(texts), truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        return {**tokens, "labels": torch.tensor(labels)}

    splits = load_dataset(data)
    parts = splits["train"].train_test_split(0.1, seed=seed)
    return [
        DataLoader(rows, batch_size, shuffle=rows is parts["train"], collate_fn=collate)
        for rows in (parts["train"], parts["test"], splits["test"])
    ]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy."""
    value: Tensor = model(**batch).loss
    return value


def accuracy(model: nn.Module, loader: DataLoader[Batch]) -> float:
    """Return the fraction of texts with the right label."""
    hits = [model(**batch).logits.argmax(dim=1) == batch["labels"] for batch in loader]
    return float(torch.cat(hits).float().mean())


metric = accuracy


def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return AdamW, as models of transformers are fine-tuned with."""
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def selection(model: nn.Module) -> prunus.Selection:
    """Return the weights of the encoder: the embedding and the new head stay dense."""
    return prunus.select(model, exclude=["*embeddings*", "*classifier*"])
