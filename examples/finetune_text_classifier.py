"""Fine-tuning of a text classifier by the Trainer of transformers, with the encoder pruned.

python examples/finetune_text_classifier.py --sparsity 0.7
"""

from __future__ import annotations

import argparse

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

import prunus
from prunus.integrations.transformers import PruningCallback


def main() -> None:
    """Fine-tune and prune; the embedding and the new head stay dense."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="distilbert/distilbert-base-uncased")
    parser.add_argument("--data", default="stanfordnlp/imdb", help="Hub name or folder")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", default="text-classifier")
    options = parser.parse_args()

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = load_dataset(options.data).map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=256), batched=True
    )
    # The test split stays unread until the end.
    parts = data["train"].train_test_split(0.1, seed=0)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)

    def accuracy(predicted: EvalPrediction) -> dict[str, float]:
        labels = np.argmax(predicted.predictions, axis=1)
        return {"accuracy": float(np.mean(labels == predicted.label_ids))}

    arguments = TrainingArguments(
        options.out,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=16,
        learning_rate=3e-5,
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
    )
    steps = -(-len(parts["train"]) // arguments.train_batch_size)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
        callbacks=[
            PruningCallback(
                metric="accuracy",
                schedule=prunus.GradualPruning(
                    sparsity=options.sparsity, epochs=options.epochs, steps_per_epoch=steps
                ),
                selection=lambda model: prunus.select(
                    model, exclude=["*embeddings*", "*classifier*"]
                ),
            )
        ],
    )
    trainer.train()
    print(trainer.evaluate(data["test"], metric_key_prefix="test"))
    trainer.save_model()  # an ordinary model for from_pretrained; zeros are stored
    prunus.save_sparse(model, f"{options.out}/model.sparse.safetensors")


if __name__ == "__main__":
    main()
