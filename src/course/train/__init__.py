"""How it learns: the training loop, its files, the recipes and the weights that they made.

fit         the only training loop
processes   one training in several processes
checkpoint  files of tensors, written whole or not at all
settings    what a recipe is made of
recipes     one small file for each trained model
run         a recipe with a profile, from the first step to the result file
weights     the shipped models
"""
