"""One picture with its label, for the examples in the service's document."""

LABEL = 7
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAADgAAAA4AQAAAACA/QazAAAAX0lEQVR42rWQsRGAIBRDgwvgBjIKm7kck7CA0Fl4PgsbQk+Vy7+8"
    "3OUHJEnatFYFkk5+PfjvaczBncc8NLCePvXWyRc5H51n9/yb3D/Z+YbzfdpVJ198LxEQcAFh0Z8/Oo01s3YI6D8AAAAASUVORK5C"
    "YII="
)
"""A drawn seven, a PNG file in base64."""
