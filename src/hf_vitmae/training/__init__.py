"""How to optimise any model whose output has `.loss`; knows nothing of data or tasks.

loop: the one training loop. optim, schedule: AdamW groups and the learning rate. checkpoint,
run_folder: what a run writes and how it resumes. metrics: accuracy. guard: stops a model that
cannot tell positions apart.
"""
