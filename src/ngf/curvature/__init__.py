"""How sharp the minimum is that a model lies in: the Hessian of its loss, measured without bias.

`power.py` is one number for any network, with torch alone. `measure.py` is the whole picture with
intervals, by curvlinops; `surface.py` the loss around the model.
"""
