"""What is only mathematics: no parameters, no training.  Pixels, latents and video go through the same code.

schedule    how much signal and how much noise there is at each time
objective   what a network predicts (noise, picture or velocity) and what it is trained towards
samplers    from noise to data and back, one jump at a time
guidance    denoisers made of denoisers
several     many pictures, one seed each, by several processes

Time counts as in arrays: t = 0 is the first noised state, t = T - 1 the last; t = -1 is clean data.  Papers count from
1 to T and write alpha_bar_0 = 1 for clean data.
"""
