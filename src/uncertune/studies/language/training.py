"""Pretraining on all tasks, and post-training on two, all models at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uncertune.selection import METRICS
from uncertune.studies.language.arms import MLE, Arm
from uncertune.studies.language.grammar import TASKS, Language
from uncertune.studies.language.losses import objective_loss, token_losses
from uncertune.studies.language.model import Transformer
from uncertune.studies.language.world import Setting, World
from uncertune.studies.stacked import Stacked
from uncertune.studies.study import Progress


def pretrained(setting: Setting, progress: Progress) -> World:
    """Random languages, and models trained on all their tasks: AdamW, cosine, with dropout, no text twice."""
    generator = torch.Generator().manual_seed(setting.seed)
    language = Language.draw(setting.seeds, generator)
    models = Stacked(Transformer, range(setting.seed, setting.seed + setting.seeds))
    models.base.train()
    optimizer = torch.optim.AdamW(models.parameters.values(), setting.pretraining_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.pretraining_steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        for step in range(setting.pretraining_steps):
            progress("pretraining", step, setting.pretraining_steps)
            texts = language.sample(list(range(TASKS)), setting.pretraining_batch, generator)
            loss = token_losses(models(texts[..., :-1]), texts[..., 1:])
            optimizer.zero_grad()
            loss.flatten(1).mean(1).sum().backward()
            optimizer.step()
            schedule.step()
    models.base.eval()
    optimizer.zero_grad()
    progress("pretraining", setting.pretraining_steps, setting.pretraining_steps)
    return World(setting, language, models)


def teacher(world: World, members: int = 1) -> Stacked:
    """Stage 1: the pretrained models trained with plain MLE on the same data; the first of the members.

    Each other member sees the data in another order.
    """
    while len(world.members) < members:
        order = world.order_of(len(world.members))
        world.members.append(post_train(world, MLE, world.data, order=order))
    return world.members[0]


def best_teacher(world: World) -> Stacked:
    """Stage 1 of each seed at the epoch whose loss on the held-out texts is lowest."""
    if world.best_teacher is None:
        best = world.base.copy()
        lowest = torch.full((world.setting.seeds,), torch.inf)

        @torch.no_grad()
        def keep(models: Stacked) -> None:
            losses = token_losses(models(world.holdout[..., :-1]), world.holdout[..., 1:]).flatten(1).mean(1)
            for seed in (losses < lowest).nonzero().flatten().tolist():
                lowest[seed] = losses[seed]
                for name, value in models.parameters.items():
                    best.parameters[name][seed] = value[seed]

        post_train(world, MLE, world.data, keep)
        world.best_teacher = best
    return world.best_teacher


def trained(world: World, arm: Arm, after: Callable[[Stacked], None] | None = None) -> Stacked:
    """A copy of the pretrained models, post-trained with ``arm``; ``after`` is called after each epoch."""
    if arm == MLE and after is None:
        return teacher(world).copy()
    if "distill" in arm.objective and arm.teacher == "best":
        best_teacher(world)
    elif "distill" in arm.objective:
        teacher(world, arm.members)
    metric = METRICS.get(arm.metric)  # None: a score by the truth
    if metric is not None and metric.extra == "reference_loss" and world.rho_reference is None:
        # on data that neither stage trains on
        world.rho_reference = post_train(world, MLE, world.holdout)
    return post_train(world, arm, world.data, after)


def post_train(
    world: World,
    arm: Arm,
    data: Tensor,
    after: Callable[[Stacked], None] | None = None,
    order: list[Tensor] | None = None,
) -> Stacked:
    """AdamW at a constant rate without dropout; every arm sees the same batches in the same order."""
    setting = world.setting
    models = world.base.copy()
    optimizer = torch.optim.AdamW(models.parameters.values(), setting.rate, weight_decay=0.0)
    step = 0
    for epoch in world.order if order is None else order:
        mine = epoch[epoch < data.shape[1]]
        for start in range(0, len(mine), setting.batch):
            optimizer.zero_grad()
            objective_loss(world, models, arm, data[:, mine[start : start + setting.batch]], step).backward()
            optimizer.step()
            step += 1
        if after is not None:
            after(models)
    return models
