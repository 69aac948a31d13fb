"""Every loss once more, in float64 and plain Python loops over rows and tokens: slow, and plain to see through."""

import math
import statistics

import numpy as np

Rows = list[tuple[float, ...]]


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def sigmoid(z: float) -> float:
    return math.exp(log_sigmoid(z))


def cross_entropy(z: float, label: float) -> float:
    return -label * log_sigmoid(z) - (1 - label) * log_sigmoid(-z)


def weighted_mean(values: list[float], weight: np.ndarray) -> float:
    total = sum(weight)
    return sum(v * w for v, w in zip(values, weight, strict=True) if w) / total if total else 0.0


# Preference models: one row of numbers a pair.


def bt_loss(r_w, r_l, label, margin, weight, *, label_smoothing, center):
    losses = []
    for w, lo, y, m in zip(r_w, r_l, label, margin, strict=True):
        target = y * (1 - label_smoothing) + (1 - y) * label_smoothing
        losses.append(cross_entropy(w - lo - (2 * y - 1) * m, target) + center * (w + lo) ** 2)
    return weighted_mean(losses, weight)


def bt_ties_loss(r_w, r_l, label, tie, weight, *, log_theta):
    losses, theta = [], math.exp(log_theta)
    for w, lo, y, t in zip(r_w, r_l, label, tie, strict=True):
        one, two = math.exp(w), math.exp(lo)
        wins, loses = one / (one + theta * two), two / (two + theta * one)
        said = -y * math.log(wins) - (1 - y) * math.log(loses)
        losses.append(-t * math.log(1 - wins - loses) + (1 - t) * said)
    return weighted_mean(losses, weight)


def genrm_loss(z12, z21, label, weight, *, form, w_cons, w_ce=0.05):
    losses = []
    for a, b, y in zip(z12, z21, label, strict=True):
        loss = (cross_entropy(a, y) + cross_entropy(b, 1 - y)) / 2
        if form == "antisymmetric":
            loss = cross_entropy((a - b) / 2, y) + w_ce * loss
        losses.append(loss + w_cons * (a + b) ** 2)
    return weighted_mean(losses, weight)


def pairwise_policy_loss(l1, l2, l1_old, l2_old, win, weight, *, beta, eps, c):
    losses = []
    for a, b, a_old, b_old, p in zip(l1, l2, l1_old, l2_old, win, strict=True):
        z, z_old = a - b, a_old - b_old
        q = (2 * p - 1) - beta * z
        importance = min(max(math.exp(a - a_old + b - b_old), 1 / c), c)
        bounded = min(max(z, z_old - eps), z_old + eps)
        losses.append(max(-q * importance * z, -q * importance * bounded) / 2)
    return weighted_mean(losses, weight)


def pair_regression_loss(l1, l2, win, weight, *, beta, link):
    losses = []
    for a, b, p in zip(l1, l2, win, strict=True):
        z = beta * (a - b)
        losses.append(cross_entropy(z, p) if link == "logistic" else (z - (p - 0.5)) ** 2)
    return weighted_mean(losses, weight)


def pairwise_rl_reward(z_ya, z_ay, mask, *, f, over="mean", tie=0.5, floor=1e-4):
    def outcome(gap):
        return tie if gap == 0 else float(gap > 0)

    maps = {
        "id": lambda p: p,
        "centred": lambda p: p - 0.5,
        "logit": lambda p: math.log(min(max(p, floor), 1 - floor) / (1 - min(max(p, floor), 1 - floor))),
        "log": lambda p: math.log(min(max(p, floor), 1 - floor)),
        "hard": lambda p: outcome(p - 0.5),
        "signed": lambda p: 2 * outcome(p - 0.5) - 1,
    }
    out = []
    for ya, ay, keep in zip(z_ya, z_ay, mask, strict=True):
        met = [(a, b) for a, b, k in zip(ya, ay, keep, strict=True) if k]
        if f == "verdicts":
            rewards = [(outcome(a) + outcome(-b)) / 2 for a, b in met]
        else:
            rewards = [maps[f]((sigmoid(a) + 1 - sigmoid(b)) / 2) for a, b in met]
        if not rewards:
            out.append(0.0)
        elif over == "min":
            out.append(min(rewards))
        else:
            mean = sum(rewards) / len(rewards)
            even = 0.5 if f == "verdicts" else maps[f](0.5)
            out.append(float(np.sign(mean - even)) if over == "sign" else mean)
    return np.array(out)


def pair_token_loss(logp, logp_old, logp_ref, gap, weight, *, beta, eps, c):
    """Two responses of one row are halves of its tokens."""
    losses = []
    for new, old, ref, r in zip(logp, logp_old, logp_ref, gap, strict=True):
        half = len(new) // 2
        halves = [range(half), range(half, 2 * half)]
        z = [sum(new[t] - ref[t] for t in part) for part in halves]
        q = r - beta * (z[0] - z[1])
        importance = min(max(math.exp(sum(new[t] - old[t] for part in halves for t in part)), 1 / c), c)
        total = 0.0
        for sign, part in zip((1, -1), halves, strict=True):
            for t in part:
                factor = -sign * q * importance
                total += max(factor * new[t], factor * min(max(new[t], old[t] - eps), old[t] + eps))
        losses.append(total / 2)
    return weighted_mean(losses, weight)


def single_regression_loss(ratio, target, weight, *, beta):
    return weighted_mean([(beta * x - y) ** 2 for x, y in zip(ratio, target, strict=True)], weight)


# Shapes of scores.


def lsc(scores, references, mask, *, quantile, fit):
    out = []
    for score, row, keep in zip(scores, references, mask, strict=True):
        known = np.array([x for x, k in zip(row, keep, strict=True) if k])
        if fit == "normal":
            q = statistics.NormalDist(known.mean(), max(known.std(), 1e-12)).inv_cdf(quantile)
        else:
            q = np.quantile(known, quantile)
        out.append(math.log(sigmoid(score - q)))
    return np.array(out)


# Policies: a list of token losses for each row.


def reduce_tokens(rows: list[list[float]], how: str, room: int = 1) -> float:
    rows = [row for row in rows if row]
    if not rows:
        return 0.0
    if how == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    over = {"seq_mean_token_mean": len, "seq_mean_token_sum": lambda row: 1, "seq_mean_room_mean": lambda row: room}[
        how
    ]
    return sum(sum(row) / over(row) for row in rows) / len(rows)


def ppo_policy_loss(logp, logp_old, adv, mask, *, clip_low, clip_high, dual, reduce, ratio_level):
    rows = []
    for i in range(len(logp)):
        tokens = [t for t in range(len(mask[i])) if mask[i][t]]
        gaps = [logp[i][t] - logp_old[i][t] for t in tokens]
        if ratio_level == "sequence" and tokens:
            gaps = [sum(gaps) / len(gaps)] * len(gaps)
        row = []
        for gap, t in zip(gaps, tokens, strict=True):
            a, ratio = adv[i][t], math.exp(gap)
            loss = max(-a * ratio, -a * min(max(ratio, 1 - clip_low), 1 + clip_high))
            row.append(min(loss, -a * dual) if dual and a < 0 else loss)
        rows.append(row)
    return reduce_tokens(rows, reduce, len(mask[0]))


def weighted_logp(logp, logp_old, adv, mask, *, reduce, bounds=None):
    """REINFORCE, or with bounds of the ratio CISPO's, whose weights have no gradient: so the value alone."""
    rows = []
    for i in range(len(logp)):
        row = []
        for t in range(len(mask[i])):
            if mask[i][t]:
                ratio = math.exp(logp[i][t] - logp_old[i][t])
                weight = 1.0 if bounds is None else min(max(ratio, bounds[0]), bounds[1])
                row.append(-weight * adv[i][t] * logp[i][t])
        rows.append(row)
    return reduce_tokens(rows, reduce, len(mask[0]))


def ppo_value_loss(v, v_old, ret, mask, *, clip_value):
    rows = []
    for i in range(len(v)):
        row = []
        for t in range(len(mask[i])):
            if mask[i][t]:
                bounded = v_old[i][t] + min(max(v[i][t] - v_old[i][t], -clip_value), clip_value)
                row.append(max((v[i][t] - ret[i][t]) ** 2, (bounded - ret[i][t]) ** 2) / 2)
        rows.append(row)
    return reduce_tokens(rows, "token_mean")


def token_mean(x, mask):
    return reduce_tokens(
        [[a for a, k in zip(row, keep, strict=True) if k] for row, keep in zip(x, mask, strict=True)], "token_mean"
    )


def gae(rewards, values, mask, bootstrap, *, gamma, lam_actor, lam_critic):
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for i in range(len(rewards)):
        for lam, out in ((lam_actor, advantages), (lam_critic, returns)):
            later, following = 0.0, bootstrap[i]
            for t in reversed([t for t in range(len(mask[i])) if mask[i][t]]):
                delta = rewards[i][t] + gamma * following - values[i][t]
                later = delta + gamma * lam * later
                out[i][t] = later + (values[i][t] if out is returns else 0.0)
                following = values[i][t]
    return np.stack([advantages, returns])


def token_rewards(score, kl, mask, *, beta):
    out = np.zeros(kl.shape)
    for i in range(len(kl)):
        tokens = [t for t in range(len(mask[i])) if mask[i][t]]
        for t in tokens:
            out[i][t] = -beta * kl[i][t] + (score[i] if t == tokens[-1] else 0.0)
    return out


def kl_estimate(logp, logp_ref, mask, *, kind):
    out = np.zeros(logp.shape)
    for i in range(len(logp)):
        for t in range(len(mask[i])):
            if mask[i][t]:
                d = logp_ref[i][t] - logp[i][t]
                out[i][t] = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - 1 - d}[kind]
    return out


def whiten(x, mask, *, ddof, eps, shift_mean=True):
    values = [a for row, keep in zip(x, mask, strict=True) for a, k in zip(row, keep, strict=True) if k]
    out = np.zeros(x.shape)
    if len(values) > ddof:
        mean = sum(values) / len(values)
        std = math.sqrt(sum((a - mean) ** 2 for a in values) / (len(values) - ddof))
        if std > 1e-6 * max(map(abs, values)):
            out = (x - mean) / (std + eps)
        out = out + (0.0 if shift_mean else mean)
    return np.where(mask, out, 0.0)


def group_advantage(r, mask, *, kind, ddof=1, eps=1e-4):
    out = np.zeros(r.shape)
    for i in range(len(r)):
        members = [g for g in range(len(mask[i])) if mask[i][g]]
        for g in members:
            others = [r[i][j] for j in members if j != g]
            if kind == "leave_one_out":
                out[i][g] = r[i][g] - sum(others) / len(others) if others else 0.0
            elif kind == "mean":
                out[i][g] = r[i][g] - (r[i][g] + sum(others)) / len(members)
        if kind == "standardised":
            out[i] = whiten(r[i : i + 1], mask[i : i + 1], ddof=ddof, eps=eps)[0]
    return out


def win_rate(P, mask):
    out = np.zeros(P.shape[:2])
    for b in range(len(P)):
        for i in range(P.shape[1]):
            met = [P[b][i][j] for j in range(P.shape[1]) if j != i and mask[b][i][j]]
            out[b][i] = sum(met) / len(met) if met else 0.0
    return out
