"""What a search for options may be told, by name; imports nothing, so that help is quick."""

SHADOW, PRIVATE = "shadow", "private_ssim_oracle"
METRICS = {SHADOW: "matched_ssim_gain/train", PRIVATE: "matched_ssim/train"}  # by objective, where none is named
SAMPLERS = ("tpe", "random")
