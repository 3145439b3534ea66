"""What people do with a denoiser: edit, interpolate, search levels, measure, find likelihoods.

One module per task: `editing`, `interpolation`, `likelihood`, `metrics`, `search`.
"""
