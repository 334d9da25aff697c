# ruff: noqa: E501
"""The mutations of ``tools.mutations``, and the tests that must notice them.

``TESTS`` has the tests of each room, and of files with tests of their own. An entry may name narrower ones, and gives the reason where it cannot be noticed.
"""

from __future__ import annotations

from dataclasses import dataclass

TESTS = {
    "objectives": ("tests/objectives",),
    "selection": ("tests/selection",),
    "fused": (
        "tests/fused/test_linear.py",
        "-k",
        "equals_the_plain or statistics or test_top_k or what_scoring_kept or incoming_gradient or rounding_relative",
    ),
    "uncertainty": ("tests/uncertainty/test_bald.py",),
    "teachers": ("tests/teachers",),
    "teachers/fingerprints.py": ("tests/teachers/test_fingerprints.py",),
    "teachers/cache.py": ("tests/teachers/test_shards.py",),
    "teachers/shards.py": ("tests/teachers/test_shards.py",),
    "statistics": ("tests/statistics",),
    "statistics/bootstrap.py": ("tests/scoring/test_correlation.py",),
    "statistics/decided.py": ("tests/statistics/test_decided.py",),
    "statistics/findings.py": ("tests/statistics/test_findings.py",),
    "statistics/intervals.py": ("tests/statistics/test_intervals.py",),
    "statistics/paired.py": ("tests/statistics/test_paired.py",),
    "statistics/pareto.py": ("tests/statistics/test_intervals.py",),
    "statistics/winrate.py": ("tests/statistics/test_winrate.py",),
    "sweep": ("tests/sweep/test_sweep_page.py",),
    "sweep/curves.py": ("tests/sweep/test_sweep_curves.py",),
    "training": ("tests/training/test_step.py",),
    "judging": ("tests/judging/test_verdicts.py",),
    "evaluation": ("tests/evaluation/test_tokens.py",),
}
"""The tests of a room, or of one of its files, as arguments of pytest, quick ones only."""


@dataclass(frozen=True)
class Mutation:
    """``old`` occurs once in ``file`` (under ``src/uncertune``) and becomes ``new``.

    ``tests`` replaces the tests of the file or room; ``why`` says why no test can notice it.
    """

    file: str
    old: str
    new: str
    why: str = ""
    tests: tuple[str, ...] = ()

    @property
    def room(self) -> str:
        """The first part of the path."""
        return self.file.partition("/")[0]

    @property
    def asked(self) -> tuple[str, ...]:
        """The tests that must fail."""
        return self.tests or TESTS.get(self.file) or TESTS[self.room]


_WEIGHTING = ("tests/objectives/test_weighting.py",)
_CONTRACT = ("tests/objectives/test_contract.py", "-k", "response or renormalized or multiplies or scaling")
_STEP = ("tests/training/test_step.py",)
_NEAR = ("tests/fused/test_linear.py", "-k", "near_the_teacher")
_CACHE = ("tests/training/test_teacher_cache.py", "-k", "top_k or differs or damaged_head or room or no_documents")
_FAMILY = ("tests/training/test_family.py", "-k", "base_as_anchor or frozen_copy or another_vocabulary or anchors_part")
_RECORDS = ("tests/training/test_records.py", "-k", "side_columns")
_RANKS = ("tests/training/test_ranks.py",)
_LOSS = (
    "tests/training/test_invariance.py",
    "tests/training/test_evaluation.py",
    "-k",
    "test_cuts_agree_in_float32 or are_rounded_after",
)
_EVALUATION = ("tests/training/test_evaluation.py", "-k", "not ranks")
_PARITY = ("tests/training/test_trl_parity.py", "-k", "mixtral or record")

MUTATIONS = (
    # ---- objectives
    Mutation("objectives/catalogue.py", "hard.plus(_taught(labels, (labels != IGNORED) & ~selected, teacher))", "hard.plus(_taught(labels, labels != IGNORED, teacher))"),
    Mutation("objectives/catalogue.py", "keep = (mask & (labels != IGNORED))", "keep = mask"),
    Mutation("objectives/catalogue.py", "label_smoothing * keep, (1 - label_smoothing) * keep", "label_smoothing * keep, keep"),
    Mutation("objectives/catalogue.py", "tail = (1 - probs.sum(-1)).clamp(min=0) * keep", "tail = (1 - probs.sum(-1)).clamp(min=0)", tests=_CONTRACT),
    Mutation("objectives/catalogue.py", "probs = probs / probs.sum(-1, keepdim=True)", "probs = probs * probs.sum(-1, keepdim=True)", tests=_CONTRACT),
    Mutation("objectives/catalogue.py", "_asked(labels, mask, member, 1 / len(teacher))", "_asked(labels, mask, member, 1.0)"),
    Mutation("objectives/catalogue.py", "torch.where(labels != IGNORED, advantages, torch.zeros_like(advantages))", "advantages"),
    Mutation("objectives/catalogue.py", "asked = _taught(labels, labels != IGNORED, anchor)", "asked = _taught(labels, labels == labels, anchor)", tests=_CONTRACT),
    Mutation("objectives/loss.py", "loss_T = loss_T - term.weight.to(dtype) *", "loss_T = loss_T + term.weight.to(dtype) *"),
    Mutation("objectives/loss.py", "log_probs_TV.mean(-1)", "log_probs_TV.sum(-1)"),
    Mutation("objectives/loss.py", "counts = (targets.tail_weight != 0) & outside_TV.any(-1)", "counts = targets.tail_weight != 0"),
    Mutation("objectives/head.py", "u = u * finish.scale", "u = u / finish.scale"),
    Mutation("objectives/head.py", "finish.scale * (1 - (logits", "(1 - (logits"),
    Mutation("objectives/targets.py", "weights[:, 0] *= weight_T", "weights *= weight_T[:, None]", tests=_CONTRACT),
    Mutation("objectives/targets.py", "uniform = _times(self.uniform_weight, weight_T)", "uniform = self.uniform_weight", tests=_CONTRACT),
    Mutation("objectives/targets.py", "mask = mask | (self.dense != 0).any(-1)", "mask = mask & (self.dense != 0).any(-1)"),
    Mutation("objectives/targets.py", "tail_weight=_times(self.tail_weight, factor_T)", "tail_weight=self.tail_weight", tests=_CONTRACT),
    Mutation("objectives/weighting.py", "/ math.log(z_Tk.shape[-1])", "/ math.log(top_k)", tests=_WEIGHTING),
    Mutation("objectives/weighting.py", "math.log(cutoff / (1 - cutoff)) - log_odds", "math.log(cutoff / (1 - cutoff)) + log_odds"),
    Mutation("objectives/weighting.py", "return weight.clamp(min=0)", "return weight"),
    Mutation("objectives/weighting.py", "(-torch.expm1(view.log_prob.clamp(max=0))) ** gamma", "view.log_prob.exp() ** gamma"),
    Mutation("objectives/advantages.py", "(count - 1).clamp(min=1)", "count"),
    Mutation("objectives/advantages.py", "(ratio > 1 + high)", "(ratio > 1 + low)"),
    Mutation("objectives/advantages.py", "(advantages < 0) & (ratio < 1 - low)", "(advantages < 0) & (ratio < 1 / (1 + low))"),
    Mutation("objectives/catalogue.py", "label_smoothing * keep, (1 - label_smoothing) * keep", "keep, (1 - label_smoothing) * keep"),
    Mutation("objectives/catalogue.py", "torch.full_like(labels, weight, dtype=torch.float64)", "torch.full_like(labels, 1, dtype=torch.float64)", tests=_WEIGHTING),
    Mutation("objectives/catalogue.py", "return targets.plus(asked.times(", "return asked.plus(asked.times(", tests=_WEIGHTING),
    Mutation("objectives/catalogue.py", "return _asked(labels, mask, teacher, 1.0)", "return _asked(labels, labels != IGNORED, teacher, 1.0)"),
    Mutation("objectives/weighting.py", "return view.log_prob.exp()", "return -view.log_prob", tests=_WEIGHTING),
    Mutation("objectives/weighting.py", "z_Tk.log_softmax(-1)", "z_Tk - z_Tk.amax(-1, keepdim=True)", tests=_WEIGHTING),
    Mutation("objectives/weighting.py", "math.log(z_Tk.shape[-1])) ** alpha", "math.log(z_Tk.shape[-1]))", tests=_WEIGHTING),
    Mutation("objectives/weighting.py", "log_p - torch.log(-torch.expm1(log_p))", "log_p", tests=_WEIGHTING),
    Mutation("objectives/weighting.py", "weight = log_p.exp() * (", "weight = (", tests=_WEIGHTING),
    Mutation("objectives/weighting.py", "view.log_prob.clamp(max=0))) ** gamma", "view.log_prob.clamp(max=0)))", tests=_WEIGHTING),
    # ---- selection
    Mutation("selection/metrics.py", "stats.loss - extra", "extra - stats.loss"),
    Mutation("selection/metrics.py", "lambda stats, extra: stats.entropy", "lambda stats, extra: stats.loss"),
    Mutation("selection/select.py", "Fraction(str(fraction))", "Fraction(float(fraction))"),
    Mutation("selection/select.py", "-((-exact.numerator * total) // exact.denominator)", "(exact.numerator * total) // exact.denominator"),
    Mutation("selection/select.py", 'descending=order != "lowest", stable=True', 'descending=order != "lowest"', why="torch sorts stably on a CPU in any case; ties differ on a GPU alone"),
    Mutation("selection/select.py", "(total - count) // 2 if", "(total - count + 1) // 2 if"),
    Mutation("selection/select.py", 'float(chosen.max() if order == "lowest" else chosen.min())', "float(chosen.min())"),
    Mutation("selection/threshold.py", "self.decay * self.value + (1 - self.decay) * threshold", "(1 - self.decay) * self.value + self.decay * threshold"),
    Mutation("selection/threshold.py", "scores.double() >= threshold if", "scores.double() > threshold if"),
    Mutation("selection/threshold.py", "if not math.isnan(threshold):", "if True:"),
    Mutation("selection/select.py", "mask[ranking[above : above + count]]", "mask[ranking[above:count]]"),
    Mutation("selection/threshold.py", "scores.double() <= threshold", "scores.double() < threshold"),
    Mutation("selection/threshold.py", "scores = means[index]", "pass"),
    Mutation("selection/radix.py", "equal & (equal.cumsum(0) <= share)", "equal & (equal.cumsum(0) < share)"),
    Mutation("selection/radix.py", "missing -= shares[rank][part]", "missing -= one[part]", why="the number left then falls below 0, and a negative share selects nothing, as 0 does"),
    Mutation("selection/radix.py", "return (key ^ ((key >> 31) & 0x7FFF_FFFF)).long()", "return key.long()"),
    Mutation("selection/radix.py", "key = (scores.float() + 0.0)", "key = scores.float()"),
    Mutation("selection/scores.py", "torch.full_like(document, step), document, position)", "torch.full_like(document, step), document)"),
    Mutation("selection/scores.py", "return total / torch.bincount(index, minlength=count), index", "return total, index"),
    Mutation("selection/scores.py", "rank[first.argsort()] = torch", "rank[:] = torch"),
    # ---- fused
    Mutation("fused/chunk.py", "mass_t = mass_t + uniform_t\n", "mass_t = mass_t + 0\n"),
    Mutation("fused/chunk.py", "tail_t = torch.where(rest_t == float(\"-inf\"), 0, targets.tail_weight.to(dtype))", "tail_t = targets.tail_weight.to(dtype)"),
    Mutation("fused/chunk.py", "loss_t += tail_t * (log_norm_t - rest_t)", "loss_t += tail_t * (rest_t - log_norm_t)"),
    Mutation("fused/chunk.py", "divergence_nt.append(gap_t - norm_t + chunk.log_norm)", "divergence_nt.append(gap_t + norm_t - chunk.log_norm)", tests=_WEIGHTING),
    Mutation("fused/chunk.py", "grad_tK = grad_tK - taught.listed", "grad_tK = grad_tK"),
    Mutation("fused/chunk.py", "return grad_tK * slope(z_tK, chunk.finish)", "return grad_tK"),
    Mutation("fused/chunk.py", "if targets.ids.shape[1] > 1:", "if False:"),
    Mutation("fused/chunk.py", "mixture_tV.mul_(column)", "mixture_tV.mul_(1)"),
    Mutation("fused/chunk.py", "total_t * (terms.rest - log_norm_t).exp() - terms.tail", "total_t * (terms.rest - log_norm_t).exp()"),
    Mutation("fused/chunk.py", "listed_tK = listed_tK + weight_t[:, None] *", "listed_tK = weight_t[:, None] *"),
    Mutation("fused/chunk.py", "stats.correct[rows] = self.top == labels_t", "stats.correct[rows] = self.top != labels_t"),
    Mutation("fused/chunked.py", "code_T[: job.scored.kept] += kept", "code_T[:] += kept"),
    Mutation("fused/chunked.py", "rows_t[start:stop] - first, out", "rows_t[start:stop], out"),
    Mutation("fused/chunked.py", "if code & 1 or job.with_stats:", "if code & 1:"),
    Mutation("fused/chunked.py", "sweep(hidden_TD, ctx.job, grad_T, again)", "sweep(hidden_TD, ctx.job, 1.0, again)"),
    Mutation("fused/chunked.py", "None if g is None else g * ratio_T[0]", "None if g is None else g"),
    Mutation("fused/chunked.py", "ratio_T = grad_T / ctx.factor", "ratio_T = grad_T"),
    Mutation("fused/chunked.py", "z_tV.logsumexp(-1, keepdim=True)).exp())", "top.values.logsumexp(-1, keepdim=True)).exp())"),
    Mutation("fused/linear.py", "targets.weights.abs().argmax", "targets.weights.argmax", why="it decides which token half-precision products are relative to, which moves their rounding alone"),
    Mutation("fused/linear.py", "if rounding == \"offset\" and (labels is None or not all(shared)):", "if rounding == \"offset\" and labels is None:", tests=_NEAR),
    Mutation("fused/elementwise.py", "entropy_t = norm_t.log() - (e_tV", "entropy_t = norm_t.log() + (e_tV"),
    Mutation("fused/elementwise.py", "u_tV - other_tV if teacher.delta", "other_tV - u_tV if teacher.delta", tests=_NEAR),
    Mutation("fused/elementwise.py", "out_tV.copy_(p_tV * slope(z_tV, finish))", "out_tV.copy_(p_tV)"),
    Mutation("fused/elementwise.py", "by_product = finish.bias is None and finish.scale > 0", "by_product = finish.bias is None", tests=_WEIGHTING),
    Mutation("fused/elementwise.py", "torch.cat([kept_tC, values_tV[:, whole:]], 1)", "kept_tC", tests=_WEIGHTING),
    Mutation("fused/projection.py", "torch.addmm(-offset_t.to(self.compute)[:, None]", "torch.addmm(offset_t.to(self.compute)[:, None]"),
    Mutation("fused/projection.py", "cheap = device != \"cpu\" or head.vocabulary < LARGE_VOCABULARY", "cheap = False", why="rounding relative to the label is an optimisation: on small vocabularies it is as exact, and slower"),
    Mutation("fused/chunk.py", "uniform_t * (log_norm_t - mean_t)", "uniform_t * (mean_t - log_norm_t)"),
    Mutation("fused/chunk.py", "targets.uniform_weight.to(dtype) / chunk.raw.shape[1] * factor", "targets.uniform_weight.to(dtype) * factor"),
    Mutation("fused/chunk.py", "(targets.uniform_weight.to(dtype) / chunk.raw.shape[1])[:, None]", "targets.uniform_weight.to(dtype)[:, None]"),
    # ---- uncertainty
    Mutation("uncertainty/bald.py", "aleatoric_t = self._entropy_t / self._samples", "aleatoric_t = self._entropy_t"),
    Mutation("uncertainty/bald.py", "entr(self._probs_tV / self._samples)", "entr(self._probs_tV)"),
    Mutation("uncertainty/bald.py", "Decomposition(aleatoric_t + epistemic_t, aleatoric_t", "Decomposition(aleatoric_t, aleatoric_t"),
    Mutation("uncertainty/bald.py", "norm_t.log() - (exp_tV", "norm_t.log() + (exp_tV"),
    Mutation("uncertainty/bald.py", "(difference_t >= -_ROUNDING)", "(difference_t >= -1)"),
    Mutation("uncertainty/bald.py", "z_tV.clamp(min=-800.0)", "z_tV"),
    Mutation("uncertainty/bald.py", "return min(plans, key", "return max(plans, key"),
    # ---- teachers
    Mutation("teachers/fingerprints.py", "return _hash([*parts, *(part for pair in added_parameters(source) for part in pair)])", "return _hash(parts)"),
    Mutation("teachers/fingerprints.py", "parts.append(_settings(settings))", "pass"),
    Mutation("teachers/fingerprints.py", "fingerprint(student) if hasattr(student, \"peft_config\") else str(base)", "str(base)"),
    Mutation("teachers/fingerprints.py", "_hash(sorted(set(keys)))", "_hash(list(keys))"),
    Mutation("teachers/fingerprints.py", "digest.update(b\"\\0\")", "pass"),
    Mutation("teachers/cache.py", "\"topk\": 8 * width", "\"topk\": 4 * width"),
    Mutation("teachers/cache.py", "best.probs.float().log()", "best.probs.float()", tests=_CACHE),
    Mutation("teachers/cache.py", "{head.softcap} {head.scale}", "{head.scale}"),
    Mutation("teachers/cache.py", "if need > free:", "if need > 10 * free:"),
    Mutation("teachers/cache.py", "length + one.length > SHARD_TOKENS or size", "size"),
    Mutation("teachers/shards.py", "zip(keys.tolist(), [0, *ends], ends, strict=False)", "zip(keys.tolist(), [1, *ends], ends, strict=False)"),
    Mutation("teachers/shards.py", "if (check and not intact(self.folder / name, entry)) or", "if"),
    Mutation("teachers/shards.py", "names = [name for name in here if there.get(name) != here[name]]", "names = []"),
    Mutation("teachers/adapter.py", "with active_adapter(student, None):", "with contextlib.nullcontext():", tests=_FAMILY),
    Mutation("teachers/adapter.py", "torch.no_grad(), evaluating(model)", "torch.no_grad()", tests=("tests/training/test_stage2.py", "-k", "teacher_is_the_adapter")),
    Mutation("teachers/adapter.py", "if size != wanted:", "if False:", tests=_FAMILY),
    # ---- training
    Mutation("training/batch.py", "digest.update(labels[1:]", "0 and digest.update(labels[1:]", tests=_STEP),
    Mutation("training/batch.py", "digest.update(labels[1:]", "digest.update(labels[:]", tests=_STEP),
    Mutation("training/batch.py", "kept = min(max(real - rank * rows, 0), rows)", "kept = min(max(real - rank * rows, 0) + 1, rows)", tests=_RANKS),
    Mutation("training/dataset.py", "else slice(-args.max_length, None)", "else slice(None, args.max_length)", tests=_RECORDS),
    Mutation("training/step.py", "return max(self.selected if self.by_selected else self.tokens, 1)", "return max(self.tokens, 1)"),
    Mutation("training/step.py", "masks = [mask & ~other", "masks = [mask"),
    Mutation("training/step.py", "top_masks([-one for one in ranked], count", "top_masks(ranked, count"),
    Mutation("training/step.py", "return masks, -limit", "return masks, limit"),
    Mutation("training/step.py", "documents.index + first, documents", "documents.index, documents"),
    Mutation("training/step.py", "torch.zeros_like(position) if rule.level == \"document\" else position", "position"),
    Mutation("training/step.py", "if is_nan:", "if False:"),
    Mutation("training/step.py", "torch.where(selected, 0, loss_T).sum()", "loss_T.sum()"),
    Mutation("training/step.py", "out[\"selected_fraction\"] = sums[\"selected\"] / tokens", "out[\"selected_fraction\"] = sums[\"selected\"] / denominator"),
    Mutation("training/step.py", "(max if self.from_below else min)(limits", "min(limits"),
    Mutation("training/step.py", "sums[\"correct\"] / scored", "sums[\"correct\"] / tokens"),
    Mutation("training/step.py", "sums[\"anchor_kl\"] / tokens", "sums[\"anchor_kl\"] / denominator"),
    Mutation("training/step.py", "(\"drop\" in name or \"jitter\" in name)", "\"drop\" in name", tests=("tests/training/test_invariance.py", "-k", "nested")),
    Mutation("training/step.py", "return int(index[-1]) + 1 if index.numel() else 0", "return int(index[-1]) if index.numel() else 0"),
    Mutation("training/step.py", "if not math.isfinite(sums[\"loss\"]):", "if False:"),
    Mutation("training/step.py", "for rank, parts in enumerate(ranks):\n            if micro", "for rank, parts in reversed(list(enumerate(ranks))):\n            if micro"),
    Mutation("training/step_loss.py", "/ record.denominator * trainer.accelerator.num_processes\n", "/ record.denominator\n", tests=_RANKS),
    Mutation("training/step_loss.py", "router_aux_loss_coef * aux_loss / record.micro_batches", "router_aux_loss_coef * aux_loss", tests=_PARITY),
    Mutation("training/step_loss.py", "self.record.denominator * self._loss_scale", "self.record.denominator", tests=_LOSS),
    Mutation("training/step.py", "select_by_threshold(one, rule.threshold, order=rule.order)", "select_by_threshold(one, rule.threshold)"),
    Mutation("training/step.py", "above = ranks_above(rule.order, count, total)", "above = 0"),
    Mutation("training/step.py", "self.parts.setdefault(name, []).append(value)", "self.parts[name] = [value]"),
    Mutation("training/step.py", "\"inputs\": sums[\"inputs\"]", "\"inputs\": sums[\"inputs\"] / denominator"),
    Mutation("training/step.py", "sums[\"anchor_loss\"] / denominator", "sums[\"anchor_loss\"] / max(sums[\"inputs\"], 1)", tests=_FAMILY),
    Mutation("training/step.py", "out[name] = sums[name] / sums[f\"{name}_tokens\"]", "out[name] = sums[name] / tokens"),
    Mutation("training/step.py", "sum(one[name] for one, _, _ in ranks)", "ranks[0][0][name]", tests=_RANKS),
    Mutation("training/step.py", "selected = int(sum_over_ranks({\"selected\": selected})[\"selected\"])", "pass", tests=_RANKS),
    Mutation("training/trainer.py", "tokens = int(sum_over_ranks({\"tokens\": tokens})[\"tokens\"])", "pass", tests=_RANKS),
    Mutation("training/trainer.py", "layout.index.numel() for layout in found", "layout.index.numel() for layout in found[:1]", tests=_LOSS),
    Mutation("training/weights.py", "weight_T * swept.cross_entropy[-1]", "swept.cross_entropy[-1]", tests=_FAMILY),
    Mutation("training/weights.py", "swept.divergence[-1]", "swept.divergence[0]", tests=_FAMILY),
    Mutation("training/weights.py", "tokens.labels, anchor, args.anchor_weight", "tokens.labels, anchor, 1.0", tests=_FAMILY),
    Mutation("training/evaluation.py", "sums[\"loss\"] / tokens", "sums[\"loss\"]", tests=_EVALUATION),
    Mutation("training/evaluation.py", "tokens=tokens.labels.numel()", "tokens=1", tests=_EVALUATION),
    Mutation("training/evaluation.py", "loss=float(loss_T.sum())", "loss=float(loss_T.mean()) * len(loss_T) ** 0.5", tests=_EVALUATION),
    Mutation("training/evaluation.py", "torch.where(mask.cpu(), selected_T, unselected_T)", "torch.where(mask.cpu(), unselected_T, selected_T)", tests=_EVALUATION),
    Mutation("training/evaluation.py", "sums[\"correct\"] / tokens", "sums[\"correct\"]", tests=_EVALUATION),
    Mutation("training/evaluation.py", "sums[\"objective\"] / tokens", "sums[\"objective\"] / sums[\"has_objective\"]", tests=_EVALUATION),
    Mutation("training/evaluation.py", "sums = sum_over_ranks(own)", "sums = own", tests=("tests/training/test_evaluation.py", "-k", "ranks")),
    # ---- judging, evaluation
    Mutation("judging/verdicts.py", "1 if one.order == MODEL_FIRST else -1", "-1 if one.order == MODEL_FIRST else 1"),
    Mutation("judging/verdicts.py", "len(pair.model) - len(pair.baseline)", "len(pair.baseline) - len(pair.model)"),
    Mutation("judging/verdicts.py", "abs(one - other) <= LIKE_LENGTH", "one - other <= LIKE_LENGTH"),
    Mutation("evaluation/tokens.py", "abs(one[\"accuracy\"] - one[\"confidence\"])", "(one[\"accuracy\"] - one[\"confidence\"])"),
    Mutation("evaluation/tokens.py", "square * count / (count - 1)", "square"),
    Mutation("evaluation/tokens.py", "means = {name: self._total(name) / tokens", "means = {name: self._total(name) / len(self.sums)"),
    Mutation("evaluation/tokens.py", "one[name] - mean * one[\"tokens\"]", "one[name] - mean"),
    Mutation("evaluation/tokens.py", "return {**means, \"ece\": gap / tokens", "return {**means, \"ece\": gap / BINS"),
    Mutation("evaluation/tokens.py", "(cross_T - entropy_T)", "(cross_T + entropy_T)", tests=("tests/evaluation/test_evaluate_command.py",)),
    # ---- statistics
    Mutation("statistics/decided.py", "(first + second) / 2, unknown", "first, unknown"),
    Mutation("statistics/decided.py", "np.where(np.abs(averaged) < _TIE, 0.0, averaged)", "averaged"),
    Mutation("statistics/decided.py", "tied = len(log_odds_P) - won - lost - one_order", "tied = len(log_odds_P) - won - lost"),
    Mutation("statistics/decided.py", "np.where(y == 1, x, -x)", "np.where(y == 1, x, x)"),
    Mutation("statistics/decided.py", "expit(x[np.isfinite(x)] / temperature)", "expit(x[np.isfinite(x)] * temperature)"),
    Mutation("statistics/winrate.py", "correction = clusters / (clusters - 1) * (rows - 1) / (rows - columns)", "correction = 1.0"),
    Mutation("statistics/winrate.py", "np.add.at(summed, cluster, scores)", "summed[cluster] = scores"),
    Mutation("statistics/winrate.py", "np.tanh(length / spread) if", "length / spread if"),
    Mutation("statistics/winrate.py", "for sign in (1, -1)]", "for sign in (1, 1)]"),
    Mutation("statistics/winrate.py", "min(raw, float(expit(raw_low)))", "float(expit(raw_low))", why="the interval of the raw rate contains it but for rounding, which this removes"),
    Mutation("statistics/intervals.py", "(1 + LEVEL) / 2, len(known) - 1)", "(1 + LEVEL) / 2, len(known))"),
    Mutation("statistics/intervals.py", "known.std(ddof=1) / np.sqrt", "known.std(ddof=0) / np.sqrt"),
    Mutation("statistics/intervals.py", "Estimate(mean, mean - half, mean + half)", "Estimate(mean, mean + half, mean - half)"),
    Mutation("statistics/intervals.py", "known = known[np.isfinite(known)]", "known = known"),
    Mutation("statistics/intervals.py", "dtype=np.float64) - np.asarray(baseline", "dtype=np.float64) + np.asarray(baseline"),
    Mutation("statistics/intervals.py", "counts - 1) * spread", "counts) * spread"),
    Mutation("statistics/intervals.py", "np.arange(2, MOST_SEEDS + 1)", "np.arange(3, MOST_SEEDS + 1)"),
    Mutation("statistics/intervals.py", "abs(float(known.mean()))", "float(known.mean())"),
    Mutation("statistics/pareto.py", "all(a <= b for", "all(a < b for"),
    Mutation("statistics/pareto.py", "any(a < b for", "any(a <= b for"),
    Mutation("statistics/findings.py", "or low <= 0 <= high:", "or low <= 0:"),
    Mutation("statistics/findings.py", '(low > 0) == (self.side == "above")', '(low > 0) == (self.side == "below")'),
    Mutation("statistics/findings.py", "self.effect.low - self.level", "self.effect.low + self.level"),
    Mutation("statistics/paired.py", "x.sum() / w.sum())", "x.sum() / len(w))"),
    Mutation("statistics/paired.py", 'method="wilson"', 'method="exact"'),
    Mutation("statistics/paired.py", "_error(x - value * w) / w.sum()", "_error(x) / w.sum()"),
    Mutation("statistics/paired.py", "(x > y).sum()), int((x < y).sum())", "(x < y).sum()), int((x > y).sum())"),
    Mutation("statistics/paired.py", "(len(known) - rank) * p", "len(known) * p"),
    Mutation("statistics/paired.py", "highest = max(highest, min(", "highest = max(0.0, min("),
    Mutation("statistics/paired.py", "for error in errors)) / len(estimates)", "for error in errors))"),
    Mutation("statistics/paired.py", "* count / (count - 1)))", "))"),
    Mutation("statistics/paired.py", "centre = (won - lost) / (count + 2)", "centre = (won - lost) / count"),
    Mutation("statistics/paired.py", "won + lost + 1 - (won", "won + lost - (won"),
    Mutation("statistics/paired.py", "2 * t.sf(abs(value)", "t.sf(abs(value)"),
    Mutation("statistics/paired.py", "square = _t(count) ** 2", "square = 1.96**2"),
    Mutation("statistics/paired.py", "np.cov(x, y) * count", "np.cov(x, y)"),
    Mutation("statistics/paired.py", "(b + root) / a - 1), error", "(b + root) / a), error"),
    Mutation("statistics/bootstrap.py", "[(1 - LEVEL) / 2, (1 + LEVEL) / 2]", "[(1 - LEVEL), LEVEL]"),
    Mutation("statistics/bootstrap.py", "(weights_RG @ sums) / (weights_RG @ counts)", "(weights_RG @ sums) / len(values)"),
    Mutation("statistics/bootstrap.py", "np.random.default_rng(seed)", "np.random.default_rng()"),
    # ---- sweep
    Mutation("sweep/measures.py", "sign = -1.0 if self.main[name] in LOWER else 1.0", "sign = 1.0"),
    Mutation("sweep/measures.py", "sign * one for seed, one in self.differences", "one for seed, one in self.differences"),
    Mutation("sweep/measures.py", 'run["arm"] == arm and run["status"] == "done"', 'run["arm"] == arm'),
    Mutation("sweep/measures.py", "seed: one[seed] - other[seed]", "seed: other[seed] - one[seed]"),
    Mutation("sweep/measures.py", "for one in sets) / len(sets)", "for one in sets)"),
    Mutation("sweep/measures.py", "set.intersection(*map(set, sets))", "set.union(*map(set, sets))"),
    Mutation("sweep/measures.py", "if len(one) > 1]", "if len(one) > 0]"),
    Mutation("sweep/figures.py", "(-one.x.value, -one.y.value)", "(one.x.value, one.y.value)"),
    Mutation("sweep/figures.py", "sum(one.value > 0 for one in gains)", "sum(one.value < 0 for one in gains)"),
    Mutation("sweep/figures.py", "sum(one.low > 0 for one in gains)", "sum(one.high > 0 for one in gains)"),
    Mutation("sweep/gains.py", "str(needed - len(gains))", "str(needed)"),
    Mutation("sweep/gains.py", "found.low > 0 or found.high < 0", "found.low > 0"),
    Mutation("sweep/gains.py", "or found.low == found.high:", "or False:"),
    Mutation("sweep/curves.py", "sign = 1.0 if measure in LOWER else -1.0", "sign = -1.0"),
    Mutation("sweep/curves.py", "(-1.0 if measure in LOWER else 1.0) * (float", "1.0 * (float"),
    Mutation("sweep/curves.py", "level = min(max(", "level = max(max("),
    Mutation("sweep/curves.py", "if level <= x1:", "if level < x1:"),
    Mutation("sweep/curves.py", "if level > 0:", "if True:"),
    Mutation("sweep/curves.py", "(float(measures[measure]) - base) / base", "(float(measures[measure]) - base)"),
    Mutation("sweep/measures.py", "seed: one / theirs[seed]", "seed: one"),
    Mutation("sweep/curves.py", "(level - x0) / (x1 - x0)", "(x1 - level) / (x1 - x0)"),
    Mutation("sweep/curves.py", "_outside_at(ours[seed], level) - _outside_at(baseline", "_outside_at(ours[seed], level) + _outside_at(baseline"),
    Mutation("sweep/curves.py", "for name in names) / len(names)", "for name in names)"),
    Mutation("sweep/claims.py", 'and arm.get("level") == "token":', ":"),
)  # fmt: skip
