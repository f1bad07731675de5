"""A dense network in the manner of the examples of MLaaS4HEP: it tells signal from background by a probability."""

import keras


def model(idim: int) -> keras.Model:
    """Return a compiled model of `idim` inputs."""
    network = keras.Sequential(
        [
            keras.Input((idim,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.compile(
        optimizer=keras.optimizers.Adam(learning_rate=1e-3), loss="binary_crossentropy", metrics=["accuracy"]
    )
    return network
