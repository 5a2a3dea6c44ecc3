"""A loop of one's own with Hugging Face accelerate."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from plant import Numbers, model, reached

from workerserver.integrations import AccelerateTracker


def main() -> None:
    accelerator = Accelerator(cpu=True, log_with=AccelerateTracker())
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    loader = torch.utils.data.DataLoader(Numbers())
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    for step, batch in enumerate(loader):
        loss = torch.nn.functional.mse_loss(net(batch["x"]), batch["y"])
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        reached(step, accelerator.process_index)


if __name__ == "__main__":
    main()
