"""A trainer that is driven by one file, as ai-toolkit is: `run.py config.yaml`.

What it trains is an autoencoder of small pictures; what trains it is PyTorch Lightning, unchanged:
its loop, its checkpoints, its resuming. The config has ai-toolkit's shape: a job, and in
`config.process` one process with `datasets`, `train.steps`, `save.save_every` and
`sample.sample_every`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def main(path: str) -> None:
    """Train as the file says."""
    config = yaml.safe_load(Path(path).read_text())["config"]
    [process] = config["process"]
    folder = Path(process["training_folder"])
    pictures = load_pictures([dataset["folder_path"] for dataset in process["datasets"]])
    train, steps = process["train"], process["train"]["steps"]
    pl.seed_everything(train["seed"])
    # as many batches as there are steps, so that Lightning's bar shows them all
    order = torch.randint(len(pictures), (steps * train["batch_size"],))
    batches = DataLoader(TensorDataset(pictures[order]), batch_size=train["batch_size"])
    model = Autoencoder(train["lr"])
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            TQDMProgressBar(refresh_rate=1),
            ModelCheckpoint(
                folder / "checkpoints",
                "{step}",
                save_top_k=-1,
                every_n_train_steps=process["save"]["save_every"],
            ),
            Samples(pictures[:16], folder / "samples", process["sample"]["sample_every"]),
        ],
    )
    trainer.fit(model, batches, ckpt_path=process.get("resume_from"))
    torch.save(model.state_dict(), folder / f"{config['name']}.pt")


def load_pictures(folders: list[str]) -> Tensor:
    """All pictures below the folders: (n, 256) numbers from 0 to 1."""
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*.png"))]
    if not paths:
        sys.exit("there are no pictures in the datasets")
    shrunk = [Image.open(path).convert("L").resize((16, 16)) for path in paths]
    return torch.stack([torch.from_numpy(np.array(each)).flatten() / 255 for each in shrunk])


class Autoencoder(pl.LightningModule):
    """256 pixels through 16 numbers and back."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.network = nn.Sequential(
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Linear(64, 16),
            nn.ReLU(),
            nn.Linear(16, 64),
            nn.ReLU(),
            nn.Linear(64, 256),
            nn.Sigmoid(),
        )

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss of one batch."""
        loss = nn.functional.mse_loss(self.network(batch[0]), batch[0])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Samples(Callback):
    """Draws what the model makes of some pictures, every so many steps."""

    def __init__(self, pictures: Tensor, folder: Path, every: int) -> None:
        self.pictures, self.folder, self.every = pictures, folder, every
        folder.mkdir(parents=True, exist_ok=True)

    def on_train_batch_end(self, trainer: Any, model: Autoencoder, *_: Any) -> None:
        """Called by Lightning after each step."""
        step = trainer.global_step
        if step % self.every == 0:
            with torch.no_grad():
                drawn = model.network(self.pictures).reshape(-1, 16)
            pixels = (drawn * 255).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(self.folder / f"step-{step:06d}.png")


if __name__ == "__main__":
    main(sys.argv[1])
