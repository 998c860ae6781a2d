"""An image classifier of transformers or timm as a recipe: any model by its name or folder.

prunus run examples/image_classifier_recipe.py --set checkpoint=NAME --data FOLDER

The data are a folder with a folder of images for each class in train/ and test/, or a data set of
the Hub with the columns image and label. A model of timm has its name on the Hub, such as
timm/resnet18.a1_in1k, and needs `pip install timm`.
"""

import torch
import torch.nn.functional as F
from datasets import load_dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModelForImageClassification

import prunus

settings = {
    "dense_epochs": 2,
    "epochs": 6,
    "batch_size": 32,
    "dense_lr": 1e-4,
    "lr": 1e-4,
    "ratio": 3,
    "checkpoint": "facebook/deit-tiny-patch16-224",
    "classes": 10,
}

Batch = tuple[Tensor, Tensor]


def network(checkpoint: str, classes: int) -> nn.Module:
    """Load the model, with a new head."""
    model: nn.Module = AutoModelForImageClassification.from_pretrained(
        checkpoint, num_labels=classes, ignore_mismatched_sizes=True
    )
    return model


def loaders(
    batch_size: int, checkpoint: str, seed: int, data: str = "ylecun/mnist"
) -> list[DataLoader[Batch]]:
    """Return batches of images as the model expects them; a tenth of the training set validates."""
    processor = AutoImageProcessor.from_pretrained(checkpoint)

    def collate(rows: list[dict[str, object]]) -> Batch:
        images = [row["image"].convert("RGB") for row in rows]  # type: ignore[attr-defined]
        labels = torch.tensor([row["label"] for row in rows])
        return processor(images, return_tensors="pt")["pixel_values"], labels

    splits = load_dataset(data)
    parts = splits["train"].train_test_split(0.1, seed=seed)
    return [
        DataLoader(rows, batch_size, shuffle=rows is parts["train"], collate_fn=collate)
        for rows in (parts["train"], parts["test"], splits["test"])
    ]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy."""
    images, labels = batch
    return F.cross_entropy(model(images).logits, labels)


def accuracy(model: nn.Module, loader: DataLoader[Batch]) -> float:
    """Return the fraction of images with the right label."""
    hits = [model(images).logits.argmax(dim=1) == labels for images, labels in loader]
    return float(torch.cat(hits).float().mean())


metric = accuracy


def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return AdamW."""
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def selection(model: nn.Module) -> prunus.Selection:
    """Return the weights of all layers but the new head."""
    return prunus.select(model, exclude=["*classifier*"])
