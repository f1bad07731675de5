"""A dense network for four correlated Gaussian variables."""

import keras


def model(idim: int) -> keras.Model:
    """Return a compiled model of `idim` inputs."""
    network = keras.Sequential(
        [
            keras.Input((idim,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.compile(optimizer=keras.optimizers.Adam(3e-3), loss="binary_crossentropy", metrics=["accuracy"])
    return network
