"""Rehearsal: DeepSpeed itself as one rank of a world of any size, on this one process, to read what it holds and sends.

`python -m lm_scale.engines.rehearsal --ds_config X.json --world_size 64 [--rank 0] [pretrain's arguments]` builds the
real engine on the real model over PyTorch's fake process group, does three steps on random tokens, and prints one JSON
object on stdout (whatever the frameworks say goes to stderr; exit status 2 and one line for a user's mistake):

`world_size, rank, data_parallel, micro_batch, grad_accum, seq_len, steps`  what was rehearsed
`model, params, vocab_size, strategy, zero_stage, offload, precision`       of what; the vocabulary is the config's, or
                of a preset that of the `--tokenizer` which is named
`method`        `computed`: every product, copy and draw is done (an accelerator, or `--compute true`). `untouched`: the
                real tensors are allocated, but what would read or write large ones is left out, so that their pages are
                never touched; autograd, DeepSpeed and every allocation are the same, the numbers are not, and a model
                many times the machine's memory goes through
`device`        `cpu`, or the accelerator's name
`state_bytes`   as in `run.json`, but of this rank: parameters, gradients, master_weights, optimizer
`held`          what lives after the last step: a list of {item, where, bytes}; `where` is `device`, `host` or `nvme`:
                on a CPU, which is both, by the JSON's offload
`phases`        {init, forward, backward, step} of the last step, each {end_bytes, peak_bytes, peak_device_bytes,
                peak_host_bytes, items}: live bytes of tensors when it ended and at its fullest moment, as exact sums
                over storages; the three peaks need not be one moment. `items` lists {item, where, bytes} when the
                device was fullest. On an accelerator also {allocated_bytes, reserved_bytes}: the device's own peaks
`first_step`    the same for the first step, which allocates lazily and is traced by ZeRO-3 (without init)
`peak_phase, peak_device_bytes`  the fullest phase for the device, over init and all steps, and the bytes there
`peak_host_bytes`     the most that lay in host memory at once
`peak_process_bytes`  anonymous and shared pages of this process at their peak; no measure of the run where method is
                `untouched`
`nvme_bytes`    of DeepSpeed's swap files of this rank
`wire_bytes_per_step`  {collective: {calls, payload_bytes, sent_bytes}} of the last step; `wire_bytes_first_step`,
                `wire_bytes_init` likewise. Collectives: all_reduce, all_gather, reduce_scatter, broadcast, reduce,
                all_to_all, send. `payload_bytes`: the whole tensor, the sum of all ranks' parts (all_gather's output,
                reduce_scatter's input). `sent_bytes`: what one rank sends on a ring of the call's n ranks: payload x
                2(n-1)/n for all_reduce, x (n-1)/n for all_gather, reduce_scatter, broadcast, reduce and all_to_all
                (broadcast and reduce: the average over ranks)
`out_of_memory` null, or with `--memory_limit BYTES` {phase, step, bytes, limit_bytes, items}: where the device's bytes
                first exceeded it. An accelerator's memory is really cut to it: the rehearsal ends there, and what it
                did not reach is null; on a CPU the sum of live tensors is held against it
`skipped_steps` steps that DeepSpeed threw away for their gradients; 0 where all is well
`notes`         a list of lines: what this rehearsal cannot show

Items: `parameters, secondary_parameters` (hpZ's)`, gradients, master_weights, optimizer_states, reduce_buckets,
gathered_parameters, buffers, offload_buffers` (staging of ZeRO-2's offload)`, swap_buffers` (of NVMe)`, activations`
(made in forward and alive when it ends), `temporaries` (everything shorter-lived), `other` (outlives its step under no
name known here). A storage counts once, whole, for its first item.

Bytes are those of the tensors' storages: on a GPU the allocator rounds each up and keeps gaps, kernels take workspaces,
and the context takes what it takes; only a rehearsal on one shows them. Tensor parallel layouts can be rehearsed, a
pipeline cannot (a stage waits for what the others send), nor can fp16 on a CPU: bf16 has the same bytes.
"""
