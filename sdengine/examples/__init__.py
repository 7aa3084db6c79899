"""One short script for each way to use the engine; run them with `python -m`, for instance
`python -m sdengine.examples.text_to_image`. Each takes the folder for its files as its argument.
"""
