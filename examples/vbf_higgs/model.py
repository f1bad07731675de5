"""A small dense network that tells Higgs bosons of vector boson fusion from others by their two jets."""

import keras


def model(idim: int) -> keras.Model:
    """Return a compiled model of `idim` inputs."""
    network = keras.Sequential(
        [
            keras.Input((idim,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.compile(optimizer=keras.optimizers.Adam(1e-3), loss="binary_crossentropy", metrics=["accuracy"])
    return network
