"""A loop of someone's own that prints as Trainer does, with tqdm over its loader: the bar counts micro-batches.

Started with `torchrun`, every rank prints. `counted.json` gets the optimizer steps and the samples that were counted.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--output_dir", default="out")
parser.add_argument("--sleep", type=float, default=0.0)
options = parser.parse_args()
arguments = TrainingArguments(
    output_dir=options.output_dir,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    logging_steps=5,
    learning_rate=1e-3,
    num_train_epochs=1,
    report_to=[],
    use_cpu=True,
)
rank, ranks = arguments.process_index, arguments.world_size
print(arguments, flush=True)
print("World size:", ranks, flush=True)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=100, n_positions=16))
if ranks > 1:
    model = torch.nn.parallel.DistributedDataParallel(model)
print(f"Model: {sum(p.numel() for p in model.parameters()):,} parameters, dtype=torch.float32", flush=True)
data = torch.randint(0, 100, (480, 16))[rank::ranks]
loader = torch.utils.data.DataLoader(data, batch_size=4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
steps = samples = 0
losses = []
began = time.time()
for number, ids in enumerate(tqdm(loader), start=1):
    loss = model(input_ids=ids, labels=ids).loss
    (loss / 4).backward()
    losses.append(loss.item())
    samples += len(ids)
    time.sleep(options.sleep)
    if number % 4 == 0:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if steps % 5 == 0:
            mean, losses = sum(losses) / len(losses), []
            tqdm.write(str({"loss": mean, "grad_norm": norm, "learning_rate": 1e-3, "epoch": number / len(loader)}))
runtime = time.time() - began
result = {"train_runtime": round(runtime, 4), "train_loss": mean, "epoch": 1.0}
result["train_samples_per_second"] = round(samples * ranks / runtime, 3)
print(result, flush=True)
if rank == 0:
    counted = {"steps": steps, "samples": samples * ranks, "runtime_s": runtime}
    Path(options.output_dir, "counted.json").write_text(json.dumps(counted))
