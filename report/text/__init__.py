"""Tables as text: sheets, what is said below them, and the forms they are printed in."""
