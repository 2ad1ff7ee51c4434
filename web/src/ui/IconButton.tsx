import type { ButtonHTMLAttributes, Ref } from "react";
import { Icon, type IconName } from "./Icon";

interface Props extends ButtonHTMLAttributes<HTMLButtonElement> {
  icon: IconName;
  label: string;
  /** Shows the label beside the icon. */
  worded?: boolean;
  ref?: Ref<HTMLButtonElement>;
}

export function IconButton({ icon, label, worded = false, className = "", ...rest }: Props) {
  return (
    <button type="button" className={`icon-button ${worded ? "worded" : ""} ${className}`}
      aria-label={worded ? undefined : label} title={worded ? undefined : label} {...rest}>
      <Icon name={icon} />
      {worded && <span>{label}</span>}
    </button>
  );
}
