"""DDIM: Song, Meng & Ermon 2021, https://arxiv.org/abs/2010.02502."""
