"""Web pages of a run (`training`) and of the demonstration (`demo`).

Plain HTML with inline style and inline SVG: no script, no network, light and dark, phone to desktop. The text lies in
`templates/`, which `render` fills in; `charts` makes the curves.
"""
