"""A dense network that tells WW, ZZ and QCD events of CMS apart."""

import keras


def model(idim: int) -> keras.Model:
    """Return a compiled model of `idim` inputs that also sees the mask: 1 where an event has no value."""
    values = keras.Input((idim,), name="values")
    mask = keras.Input((idim,), name="mask")
    hidden = keras.layers.Concatenate()([values, mask])
    for width in (128, 64):
        hidden = keras.layers.Dense(width, activation="relu")(hidden)
        hidden = keras.layers.Dropout(0.3)(hidden)
    output = keras.layers.Dense(3, activation="softmax")(hidden)
    network = keras.Model([values, mask], output)
    network.compile(optimizer=keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return network
