"""What people do with a denoiser: edit, interpolate, search levels, measure, find likelihoods.

One module per task: X.
"""
