"""The equations of the report, each with its meaning and with the lines of code that do it.

The code is what a user would write; `tests/demo/test_equations.py` runs every line that is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmsolvers.demo.mathml import display, fraction, root, row, upright


@dataclass(frozen=True)
class Equation:
    """One idea of the report.

    Attributes:
        title: its name.
        math: the equation as MathML.
        meaning: one sentence of HTML.
        code: Python, a few lines.
    """

    title: str
    math: str
    meaning: str
    code: str


EQUATIONS = {
    "forward": Equation(
        "Forward SDE: data become noise",
        display(
            row("d x = − ", fraction("1", "2"), "β(t) x d t +", root("β(t)"), "d w"),
        ),
        "In every short time d<i>t</i> the state shrinks a little towards 0 and gets a little "
        "random noise d<i>w</i>, until only noise is left; nothing is learnt for that.",
        "process = VP(beta_min=0.1, beta_max=8.0)\n"
        "times = torch.linspace(0.001, 1.0, 301)\n"
        "x1 = euler_maruyama(process, x0, times, seed=0)",
    ),
    "reverse": Equation(
        "Reverse SDE: noise becomes data",
        display(
            row(
                "d x = [ − ",
                fraction("1", "2"),
                "β(t) x − β(t) ∇_x ln p_t(x) ] d t +",
                root("β(t)"),
                "d w",
            ),
        ),
        "Run with time falling from 1 to 0 the same noise is added, and the score "
        "∇ ln <i>p</i>, the direction in which noisy data become more likely, pulls the state "
        "back.",
        "score = process.score_of(denoiser)\n"
        "sde = process.reverse(score)\n"
        "data = euler_maruyama(sde, x1, times.flip(0), seed=1)",
    ),
    "ode": Equation(
        "Probability-flow ODE: no randomness on the way",
        display(
            row(
                "d x = [ − ",
                fraction("1", "2"),
                "β(t) x −",
                fraction("1", "2"),
                "β(t) ∇_x ln p_t(x) ] d t",
            ),
        ),
        "With half the pull and no noise at all the states have, at every time, the same "
        "probabilities as before, but each start now has one smooth path to one end.",
        "sigmas = process.sigma_hat(times.flip(0))\n"
        "x = x1 / process.alpha(1.0)\n"
        "data = heun_pf_ode(denoiser, x, sigmas)",
    ),
    "consistency": Equation(
        "Consistency function: every point jumps to its end",
        display(
            row("f(x_t, t) = f(x_s, s)"),
            row("f(x, σ_{min}) = x"),
        ),
        "Two points of one path have the same answer, and at the end of the path the answer is the "
        "point itself: so every answer is the end of the path, in one call of a network.",
        "f = ConsistencyFunction(network, sigma_data=0.5)\n"
        "x = 20.0 * noise.normal((1000, 1, 8, 8), seed=0)\n"
        "digits = consistency_sample(f, x, [20.0])  # one step",
    ),
    "noising": Equation(
        "One level of noise, and the denoiser",
        display(
            row("x = x_0 + σ z ,    z ∼ N(0, 1)"),
            row("∇_x ln p(x; σ) = ", fraction("D(x, σ) − x", "σ^2")),
        ),
        "The denoiser <i>D</i> names the average of all clean digits that could have become "
        "<i>x</i>; the way from <i>x</i> to it is the score, so a network that removes noise is "
        "all that is needed.",
        "x = ops.add_noise(x0, 0.8, seed=0)\n"
        "x0_hat = denoiser(x, torch.full((len(x),), 0.8))\n"
        "score = (x0_hat - x) / 0.8**2",
    ),
    "score": Equation(
        "Score model: denoising score matching",
        display(row("L = E [ w(σ) ‖ D(x_0 + σ z, σ) − x_0 ‖^2 ]")),
        "Noise a digit, let the network guess the digit, and make the squared error small: the "
        "best guess possible is the average that the score needs.",
        "denoiser = EDM(network, sigma_data=0.5)\n"
        "out = dsm(denoiser, x0, key=0, step=step, times=LogNormal(-1.0, 1.4))\n"
        "out.loss.backward()",
    ),
    "heun": Equation(
        "Heun's method for the ODE",
        display(
            row(fraction("d x", "d σ"), " = ", fraction("x − D(x, σ)", "σ")),
            row("y = x + (σ′ − σ) d ,     d =", fraction("x − D(x, σ)", "σ")),
            row(
                "x′ = x + (σ′ − σ)",
                fraction("d + d′", "2"),
                ",    d′ =",
                fraction("y − D(y, σ′)", "σ′"),
            ),
        ),
        "The ODE again, with the noise level σ as time: a step takes the mean of the slopes at its "
        "two ends, which costs two network calls.",
        "sigmas = karras_sigmas(18, sigma_min=0.002, sigma_max=20.0)\n"
        "x = 20.0 * noise.normal((1000, 1, 8, 8), seed=0)\n"
        "digits = heun_pf_ode(denoiser, x, sigmas)  # 35 calls",
    ),
    "long_step": Equation(
        "One step of Heun's method, written out",
        display(
            row(
                "x′ = ",
                fraction("x", "r"),
                "+ ( 1 − ",
                fraction("1", "r"),
                ") D +",
                fraction("r − 1", "2"),
                "(D′ − D) ,    r = ",
                fraction("σ", "σ′"),
            ),
        ),
        "An average of <i>D</i> would count its change <i>D</i>′ − <i>D</i> between 0 and "
        "1 − 1/<i>r</i> times; the step counts it (<i>r</i> − 1)/2 times, which is "
        "<i>r</i>/2 times the most that is right.",
        "a, b = 4.86, 0.825  # from a to b in one step: r = 5.9\n"
        "step = torch.tensor([a, b], dtype=torch.float64)\n"
        "x_next = heun_pf_ode(denoiser, x, step)",
    ),
    "cd": Equation(
        "Consistency distillation (CD)",
        display(
            row("L = E [ d( f(x_t, t), f^−(y_r, r) ) ]"),
            row("y_r = x_t +", upright("the teacher's step from t to r")),
        ),
        "The trained score model walks from level <i>t</i> to its neighbour <i>r</i>; the answer "
        "at <i>t</i> is pulled towards the answer there, of an average <i>f</i> <sup>−</sup> of "
        "the network's own past.",
        "levels = karras_sigmas(40, 0.002, 20.0, append_zero=False)\n"
        "out = cd(f, x0, key=0, step=step, times=UniformPairs(levels),\n"
        "         teacher=denoiser, target=f_average, distance=pseudo_huber())",
    ),
    "ct": Equation(
        "Consistency training (CT)",
        display(
            row("L = E [ ", fraction("1", "t − r"), "d( f(x_0 + t z, t), f^−(x_0 + r z, r) ) ]"),
        ),
        "No teacher: the second point is the same digit with the same noise <i>z</i>, only less of "
        "it; on average over all digits that is a step of the ODE.",
        "pairs = DoublingPairs(1500, s0=2, s1=64)  # 2, 4, ... 64 levels\n"
        "out = ict(f, x0, key=0, step=step, times=pairs)\n"
        "out.loss.backward()",
    ),
    "ect": Equation(
        "Easy consistency tuning (ECT)",
        display(
            row("r = max(0, t − t q^{−(a + 1)} n(t))"),
        ),
        "CT's loss, begun with the score model's weights: in stage <i>a</i> = 0 most pairs have "
        "<i>r</i> = 0, where that model is right already, and in each further stage the gap is "
        "1/<i>q</i> of the one before.",
        "f = ConsistencyFunction(trained_network, sigma_data=0.5)\n"
        "pairs = ECTPairs(q=4.0, stage_steps=175)\n"
        "out = ect(f, x0, key=0, step=step, times=pairs)",
    ),
}
"""By the name under which the page asks for them."""
