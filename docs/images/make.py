"""Draw the README's two pictures of scikit-learn's digits: python docs/images/make.py."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from PIL import Image  # which matplotlib needs itself
from sklearn.datasets import load_digits

from skvae import VAETransformer
from skvae.displays import LatentDisplay, ManifoldDisplay

FOLDER = Path(__file__).parent
N_COLOURS = 64


def write(display, name):
    picture = io.BytesIO()
    display.figure_.savefig(picture, dpi=80)
    few_colours = Image.open(picture).convert("RGB").quantize(N_COLOURS)  # a third of the bytes
    few_colours.save(FOLDER / name, optimize=True)


def main():
    X, y = load_digits(return_X_y=True)
    vae = VAETransformer(2, random_state=0).fit(X)
    write(LatentDisplay.from_estimator(vae, X, y), "latent_map.png")
    tiles = {"image_shape": (8, 8), "vmin": 0.0, "vmax": 16.0}
    write(ManifoldDisplay.from_estimator(vae, **tiles), "digits_manifold.png")


if __name__ == "__main__":
    main()
