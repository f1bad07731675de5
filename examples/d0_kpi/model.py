"""A dense network that finds decays of the D0 to a kaon and a pion."""

import keras


def model(idim: int) -> keras.Model:
    """Return a compiled model of `idim` inputs."""
    network = keras.Sequential(
        [
            keras.Input((idim,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.compile(optimizer=keras.optimizers.Adam(3e-3), loss="binary_crossentropy", metrics=["accuracy"])
    return network
