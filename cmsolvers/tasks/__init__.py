"""What people do with a denoiser: edit, interpolate, search levels, measure, find likelihoods.

One module per task: `editing`, `interpolation`, `likelihood`, `metrics`, `search`; and problems
with known answers, `exact_problems` and `few_step_problems`.
"""
