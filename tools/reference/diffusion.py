"""Small second stages, what they answer and what every sampler paints with them, in float64 PyTorch.

    python diffusion.py --golden ../../crates/model/tests/golden

writes refiner_flow/ (rectified flow, the text as its mean) and refiner_v/ (v-prediction, attention to the text, Mamba-2
layers), each with refiner.toml and refiner.safetensors, and refiner_flow.safetensors and refiner_v.safetensors: inputs, answers,
and details by solver. Layers are torch.nn's; samplers are written in the terms of their papers: rectified flow in the coordinates
(1 - t) data + t noise, ancestral sampling by its betas, DPM-Solver++ by half the log of signal over noise.
"""

import argparse
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

import mamba2
import tensor_file

WIDTH, BLOCKS, KERNEL, EXPANSION, STATE = 32, 2, 3, 2, 8
OUTLINE, DETAIL, TEXT, PAIRS, STEER = 8, 12, 10, 32, 256
FRAMES, STEPS = 23, 100
CONFIG = """\
outline_width = {outline}
detail_width = {detail}
text_width = {text}
text_heads = {heads}
objective = "{objective}"

[codec]
name = "drawn"
sample_rate = 44100
hop = 2048
levels = 8
cardinality = 1024

[network]
width = {width}
blocks = {blocks}
kernel = {kernel}
expansion = {expansion}
state = {state}

[sampling]
solver = "{solver}"
steps = 4
guidance = 2.0
outline_guidance = 1.5
noise = 0.9
window = 8
halo = 4
"""


class Network:
    """The denoiser and its conditions."""

    def __init__(self, heads, state, seed):
        draw = np.random.default_rng(seed)
        self.heads, self.state = heads, state
        self.weights = {}

        def add(name, *shape, scale=1.0, shift=0.0):
            values = (draw.standard_normal(shape) * scale + shift).astype(np.float32)
            self.weights[name] = torch.from_numpy(values).double()

        def linear(name, inputs, outputs):
            add(f"refiner.{name}.weight", inputs, outputs, scale=inputs**-0.5)
            add(f"refiner.{name}.bias", outputs, scale=0.1)

        linear("input", DETAIL, WIDTH)
        linear("latent", OUTLINE, WIDTH)
        linear("steer.0", 2 * PAIRS + TEXT, STEER)
        linear("steer.1", STEER, 2 * WIDTH * (BLOCKS + 1))
        linear("output", WIDTH, DETAIL)
        for block in range(BLOCKS):
            linear(f"blocks.{block}.0", WIDTH, WIDTH * EXPANSION)
            linear(f"blocks.{block}.1", WIDTH * EXPANSION, WIDTH)
            add(f"refiner.blocks.{block}.taps", KERNEL, WIDTH, scale=0.6)
            add(f"refiner.blocks.{block}.taps_bias", WIDTH, scale=0.1)
            if state:
                # One head of 32 channels: [z | x | B | C | dt].
                scan, channels = f"refiner.blocks.{block}.scan", WIDTH + 2 * state
                add(f"{scan}_norm", WIDTH, scale=0.1, shift=1.0)
                add(f"{scan}.in_proj.weight", WIDTH + channels + 1, WIDTH, scale=WIDTH**-0.5)
                add(f"{scan}.conv1d.weight", channels, 1, 4, scale=0.5)
                add(f"{scan}.conv1d.bias", channels, scale=0.1)
                add(f"{scan}.dt_bias", 1, scale=0.5, shift=-2.0)
                add(f"{scan}.A_log", 1, scale=0.3, shift=0.5)
                add(f"{scan}.D", 1, scale=0.3, shift=1.0)
                add(f"{scan}.norm.weight", WIDTH, scale=0.1, shift=1.0)
                add(f"{scan}.out_proj.weight", WIDTH, WIDTH, scale=WIDTH**-0.5)
            if heads:
                linear(f"blocks.{block}.query", WIDTH, WIDTH)
                linear(f"blocks.{block}.text", TEXT, 2 * WIDTH)
                linear(f"blocks.{block}.heard", WIDTH, WIDTH)
        add("refiner.null_outline", OUTLINE)
        add("refiner.null_text", TEXT)
        add("detail.mean", DETAIL, scale=0.5)
        add("outline.mean", OUTLINE, scale=0.5)
        for name, width in (("detail.deviation", DETAIL), ("outline.deviation", OUTLINE)):
            self.weights[name] = torch.from_numpy((0.5 + draw.random(width)).astype(np.float32)).double()
        self.weights["text.deviation"] = torch.tensor([1.7], dtype=torch.float32).double()

    def linear(self, name, x):
        return x @ self.weights[f"refiner.{name}.weight"] + self.weights[f"refiner.{name}.bias"]

    def scan(self, block, rows):
        """A Mamba-2 layer over rows [frames, width], the last first in odd blocks."""
        prefix = f"refiner.blocks.{block}.scan"
        weights = {name: self.weights[f"{prefix}.{name}"] for name in
                   ("in_proj.weight", "conv1d.weight", "conv1d.bias", "dt_bias", "A_log", "D", "norm.weight",
                    "out_proj.weight")}
        turn = (lambda rows: rows.flip(0)) if block % 2 else (lambda rows: rows)
        projected = turn(rows) @ weights["in_proj.weight"].T
        channels = WIDTH + 2 * self.state
        y, _, _ = mamba2.mixer(
            projected[None], weights["conv1d.weight"][:, 0], weights["conv1d.bias"], weights["dt_bias"], weights["A_log"],
            weights["D"], weights["norm.weight"], torch.zeros(1, channels, 3, dtype=torch.float64),
            torch.zeros(1, 1, WIDTH, self.state, dtype=torch.float64), (WIDTH, self.state, 1, 1))
        return turn(y[0] @ weights["out_proj.weight"].T)

    def __call__(self, x, outline, time, text):
        """v for one clip: x [frames, detail] of unit variance, outline [frames, outline] or None, text [tokens, text] or
        None."""
        weights = self.weights
        if outline is None:
            known = weights["refiner.null_outline"].expand(len(x), OUTLINE)
        else:
            known = (outline - weights["outline.mean"]) / weights["outline.deviation"]
        states = weights["refiner.null_text"][None] if text is None else text / weights["text.deviation"]
        phases = time * 1000.0 ** (torch.arange(PAIRS, dtype=torch.float64) / (PAIRS - 1))
        clock = torch.stack([phases.cos(), phases.sin()], 1).flatten()
        steer = self.linear("steer.1", F.silu(self.linear("steer.0", torch.cat([clock, states.mean(0)]))))
        parts = steer.reshape(-1, WIDTH)

        def norm(hidden, place):
            return F.layer_norm(hidden, (WIDTH,), eps=1e-5) * (1 + parts[2 * place]) + parts[2 * place + 1]

        hidden = self.linear("input", x) + self.linear("latent", known)
        for block in range(BLOCKS):
            if self.state:
                scale = (hidden * hidden).mean(1, keepdim=True).add(1e-5).rsqrt()
                hidden = hidden + self.scan(block, hidden * scale * weights[f"refiner.blocks.{block}.scan_norm"])
            taps = weights[f"refiner.blocks.{block}.taps"].T[:, None]
            bias = weights[f"refiner.blocks.{block}.taps_bias"]
            mixed = F.conv1d(hidden.T[None], taps, bias, padding=KERNEL // 2, groups=WIDTH)[0].T
            normed = norm(mixed, block)
            if self.heads:
                def split(rows):
                    return rows.reshape(len(rows), self.heads, -1).transpose(0, 1)

                keys, values = self.linear(f"blocks.{block}.text", states).chunk(2, dim=1)
                query = self.linear(f"blocks.{block}.query", normed)
                heard = F.scaled_dot_product_attention(split(query), split(keys), split(values))
                heard = heard.transpose(0, 1).reshape(len(x), WIDTH)
                hidden = hidden + self.linear(f"blocks.{block}.heard", heard)
            hidden = hidden + self.linear(f"blocks.{block}.1", F.gelu(self.linear(f"blocks.{block}.0", normed)))
        return self.linear("output", norm(hidden, BLOCKS))


def guided(network, outline, text, guidance=2.0, outline_guidance=1.5):
    def v(x, time):
        unheard, plain = network(x, None, time, None), network(x, outline, time, None)
        out = unheard + outline_guidance * (plain - unheard)
        return out if text is None else out + guidance * (network(x, outline, time, text) - plain)

    return v


def flow(v, noise, steps, solver, draws, begin=1.0, sketch=0.0):
    """Rectified flow: y = (1 - t) data + t noise, dy/dt = noise - data; from the time `begin`, where data is the sketch."""

    def guesses(y, t):
        length = math.hypot(1 - t, t)
        x, a, s = y / length, (1 - t) / length, t / length
        said = v(x, t)
        return a * x - s * said, s * x + a * said

    def velocity(y, t):
        data, noise = guesses(y, t)
        return noise - data

    y, before = (1 - begin) * sketch + begin * noise, None
    for step in range(steps):
        t, to = begin * (1 - step / steps), begin * (1 - (step + 1) / steps)
        if solver in ("euler", "ddim") or to == 0:
            y = y + (to - t) * velocity(y, t)
        elif solver == "heun":
            first = velocity(y, t)
            y = y + (to - t) * (first + velocity(y + (to - t) * first, to)) / 2
        elif solver == "ancestral":
            # The same marginals as those of a Markov chain y_t = kept y_to + added noise; Bayes' rule for the step back.
            data, _ = guesses(y, t)
            kept = (1 - t) / (1 - to)
            added = t**2 - (kept * to) ** 2
            mean = (kept * to**2 * y + (1 - to) * added * data) / t**2
            y = mean + math.sqrt(added * to**2 / t**2) * draws[step]
        elif solver == "dpm-solver":
            data, _ = guesses(y, t)
            end = math.log((1 - to) / to)
            if t == 1:
                # Everything is noise: the first step of the exponential integrator from there.
                y, width = (1 - to) * data + to * y, math.inf
            else:
                width = end - math.log((1 - t) / t)
                ratio = before[1] / width if before else math.inf
                guess = data if math.isinf(ratio) else data + (data - before[0]) / (2 * ratio)
                y = to / t * y - (1 - to) * math.expm1(-width) * guess
            before = (data, width)
    return y


def cosine_betas():
    share = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return [min(1 - share((k + 1) / STEPS) / share(k / STEPS), 0.999) for k in range(STEPS)]


def variance_preserving(v, noise, steps, solver, draws, begin=1.0, sketch=0.0):
    betas = np.array(cosine_betas())
    products = np.concatenate([[1.0], np.cumprod(1 - betas)])
    times = dict.fromkeys(math.floor(begin * (1 - step / steps) * STEPS + 0.5) for step in range(steps + 1))
    times = list(times)
    x, before = noise, None
    if begin < 1:
        x = math.sqrt(products[times[0]]) * sketch + math.sqrt(1 - products[times[0]]) * noise
    for step, (k, to) in enumerate(zip(times, times[1:])):
        a, s = math.sqrt(products[k]), math.sqrt(1 - products[k])
        a_to, s_to = math.sqrt(products[to]), math.sqrt(1 - products[to])
        said = v(x, k / STEPS)
        data, rest = a * x - s * said, s * x + a * said
        if to == 0:
            x = data
        elif solver == "ddim":
            x = a_to * data + s_to * rest
        elif solver == "ancestral":
            # The posterior of Ho et al., equations 6 and 7, for a step from k to `to`.
            alpha = products[k] / products[to]
            beta = 1 - alpha
            mean = (
                math.sqrt(products[to]) * beta / (1 - products[k]) * data
                + math.sqrt(alpha) * (1 - products[to]) / (1 - products[k]) * x
            )
            x = mean + math.sqrt(beta * (1 - products[to]) / (1 - products[k])) * draws[step]
        elif solver == "dpm-solver":
            width = math.log(a_to / s_to) - math.log(a / s)
            guess = data if before is None else data + (data - before[0]) * width / (2 * before[1])
            x = s_to / s * x - a_to * math.expm1(-width) * guess
            before = (data, width)
    return x


def write(golden, name, objective, heads, state, solvers, seed):
    network = Network(heads, state, seed)
    folder = golden / name
    folder.mkdir(exist_ok=True)
    (folder / "refiner.toml").write_text(CONFIG.format(
        outline=OUTLINE, detail=DETAIL, text=TEXT, heads=heads, objective=objective, width=WIDTH, blocks=BLOCKS,
        kernel=KERNEL, expansion=EXPANSION, state=state, solver=next(iter(solvers))))
    note = {"made by": "tools/reference/diffusion.py", "torch": torch.__version__}
    stored = {part: value.numpy().astype(np.float32) for part, value in network.weights.items()}
    tensor_file.write(folder / "refiner.safetensors", stored, note)
    draw = np.random.default_rng(seed + 1)
    single = lambda *shape: draw.standard_normal(shape).astype(np.float32)
    outline, text, noise = single(FRAMES, OUTLINE), single(5, TEXT), single(STEPS + 1, FRAMES, DETAIL)
    results = {"outline": outline, "text": text, "noise": noise}
    outline, text, noise = (torch.from_numpy(values).double() for values in (outline, text, noise))
    for place, (heard_outline, heard_text) in enumerate([(outline, text), (outline, None), (None, text), (None, None)]):
        results[f"answer_{place}"] = network(noise[place], heard_outline, 0.37, heard_text).numpy()
    mean, deviation = network.weights["detail.mean"], network.weights["detail.deviation"]
    for solver, steps in solvers.items():
        for end, heard in (("", text), ("_untold", None)):
            v = guided(network, outline, heard)
            path = flow if objective == "flow" else variance_preserving
            painted = path(v, 0.9 * noise[0], steps, solver, noise[1:])
            results[f"{solver}{end}"] = (painted * deviation + mean).numpy()
            print(name, solver, steps, f"deviation {painted.std():.3f}")
    # From a sketch: SDEdit, at a time that the steps of v-prediction know.
    results["sketch"] = single(FRAMES, DETAIL)
    sketch = (torch.from_numpy(results["sketch"]).double() - mean) / deviation
    for solver, steps in solvers.items():
        painted = path(guided(network, outline, text), 0.9 * noise[0], steps, solver, noise[1:], 0.6, sketch)
        results[f"{solver}_sketched"] = (painted * deviation + mean).numpy()
    tensor_file.write(golden / f"{name}.safetensors", results, note)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=pathlib.Path, required=True)
    golden = parser.parse_args().golden
    write(golden, "refiner_flow", "flow", 0, 0, {"euler": 4, "ddim": 7, "heun": 5, "dpm-solver": 6, "ancestral": 9}, 1)
    write(golden, "refiner_v", "v-prediction", 2, STATE, {"ancestral": 100, "ddim": 10, "dpm-solver": 8}, 2)


if __name__ == "__main__":
    main()
